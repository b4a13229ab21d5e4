"""KronA: a Kronecker product of two whole factors (Edalati et al., https://arxiv.org/abs/2212.10650).

    ΔW = s · (A ⊗ B)       A: (a₁, a₂)   B: (b₁, b₂)   out = a₁·b₁   in = a₂·b₂

    ΔW[i·b₁ + k, j·b₂ + l] = s · A[i, j] · B[k, l]

`scaling` of the config is s, 1 where it is silent. Products of two fp32 are rounded once, so the
bits are the same everywhere. PEFT's LoKr with whole factors is the same, its s = alpha/r. Roles:
krona_A, krona_B. The paper's variants beside a block (KronAᴮ) are other functions, and refused as
fields that are not known.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from adapterhub.adapter import Adapter
from adapterhub.methods.computed import Computed, fp32
from adapterhub.methods.generic import idle, problems, ranks, signature
from adapterhub.methods.meaning import Delta, Meaning, Values
from adapterhub.methods.mergeable import Roles, Settings, adapted, complete

__all__ = ["idle", "meaning", "parts", "problems", "ranks", "signature"]


def meaning(adapter: Adapter, *, base_is_initialised: bool = False) -> Meaning:
    return parts(adapter)


def parts(adapter: Adapter) -> Meaning:
    return complete(adapter, _own(adapter))


def _own(adapter: Adapter) -> Iterator[Delta]:
    scale = float(Settings(adapter).get("scaling"))
    for module, roles in adapted(adapter):
        yield Delta(module, _value(roles), scale, tuple(roles))


def _value(roles: Roles) -> Computed:
    a, b = roles["krona_A"], roles["krona_B"]
    shape = (a.shape[0] * b.shape[0], a.shape[1] * b.shape[1])

    def compute() -> Values:
        wide = np.multiply(fp32(a)[:, None, :, None], fp32(b)[None, :, None, :])
        return wide.reshape(shape)

    return Computed(shape, compute, (a, b))
