"""FourierFT: few entries of a spectrum (Gao et al., https://arxiv.org/abs/2405.03003).

    ΔW = scaling · Re(IFFT2(S))      S: (out, in), zero but for the entries of fourierft_spectrum

Their places are the first of a random permutation of all, torch's for `random_loc_seed`, counted
row by row. The adapter's file knows neither out nor in. Bits hang on the transform's library.
Role: fourierft_spectrum, (n,).
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from adapterhub.adapter import Adapter
from adapterhub.errors import BaseMismatch
from adapterhub.methods.computed import Computed, fp32
from adapterhub.methods.generic import idle, problems, ranks, signature
from adapterhub.methods.meaning import Delta, Meaning, Shaped, ShapeOf, Values
from adapterhub.methods.mergeable import Settings, adapted, complete, replacements
from adapterhub.methods.random_factors import sides
from adapterhub.tensorfile import Tensor, shown

__all__ = ["idle", "meaning", "parts", "places", "problems", "ranks", "signature"]
ROLE = "fourierft_spectrum"


def meaning(adapter: Adapter, *, base_is_initialised: bool = False) -> Meaning:
    return complete(adapter, _own(adapter))


def parts(adapter: Adapter) -> Meaning:
    return (*_own(adapter), *replacements(adapter))


def _own(adapter: Adapter) -> Iterator[Shaped]:
    settings = Settings(adapter)
    seed, scaling = int(settings.get("random_loc_seed")), float(settings.get("scaling"))
    for module, roles in adapted(adapter):
        yield Shaped(module, partial(_delta, module, roles[ROLE], seed, scaling), (ROLE,))


def _delta(module: str, spectrum: Tensor, seed: int, scaling: float, shape_of: ShapeOf) -> Delta:
    out, into = sides(module, shape_of)
    count = spectrum.shape[0]
    if count > out * into:
        raise BaseMismatch(f"{shown(module)}: {count} entries for a weight of {[out, into]}")

    def compute() -> Values:
        rows, columns = np.divmod(places(seed, count, out * into), into)
        values = fp32(spectrum).astype(np.float64) / 2
        # The real part is the transform of the spectrum's even part, of which half is enough.
        half = np.zeros((out, into // 2 + 1))
        for row, column in ((rows, columns), (-rows % out, -columns % into)):
            kept = column < half.shape[1]
            np.add.at(half, (row[kept], column[kept]), values[kept])
        return np.fft.irfft2(half, s=(out, into)).astype(np.float32)

    value = Computed((out, into), compute, (spectrum,), exact=False)
    return Delta(module, value, scaling, (ROLE,))


def places(seed: int, count: int, size: int) -> NDArray[Any]:
    """The first `count` of torch's random permutation of `size` numbers."""
    import torch

    generator = torch.Generator().manual_seed(seed)
    return np.asarray(torch.randperm(size, generator=generator)[:count].numpy())
