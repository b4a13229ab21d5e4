"""C3A: circular convolutions (Chen et al., https://arxiv.org/abs/2407.19342).

    ΔW[o·b + p, i·b + q] = c3a_kernel[o, i, (q − p) mod b] / in      c3a_kernel: (out/b, in/b, b)

It is what PEFT's Fourier transforms come to, and needs no sum; so the bits are the same everywhere.
Role: c3a_kernel.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from adapterhub.adapter import Adapter
from adapterhub.methods.computed import Computed, fp32
from adapterhub.methods.generic import idle, problems, ranks, signature
from adapterhub.methods.meaning import Delta, Meaning, Values
from adapterhub.methods.mergeable import adapted, complete, replacements
from adapterhub.tensorfile import Tensor

__all__ = ["idle", "meaning", "parts", "problems", "ranks", "signature"]
ROLE = "c3a_kernel"


def meaning(adapter: Adapter, *, base_is_initialised: bool = False) -> Meaning:
    return complete(adapter, _own(adapter))


def parts(adapter: Adapter) -> Meaning:
    return (*_own(adapter), *replacements(adapter))


def _own(adapter: Adapter) -> Iterator[Delta]:
    for module, roles in adapted(adapter):
        kernel = roles[ROLE]
        yield Delta(module, _circulant(kernel), 1.0 / (kernel.shape[1] * kernel.shape[2]), (ROLE,))


def _circulant(kernel: Tensor) -> Computed:
    rows, columns, side = kernel.shape

    def compute() -> Values:
        steps = np.arange(side)
        spread = fp32(kernel)[:, :, (steps[None, :] - steps[:, None]) % side]  # (o, i, p, q)
        made: Values = spread.transpose(0, 2, 1, 3).reshape(rows * side, columns * side)
        return made

    return Computed((rows * side, columns * side), compute, (kernel,))
