"""OFT: blocks of the inputs rotated (Qiu et al., https://arxiv.org/abs/2306.07280).

    W' = W · Rᵀ        R = diag(R₁, …)      for an embedding W' = W · R
    Rᵢ = I + 2Q + 2Q² + … + 2Qⁿ⁻² + Qⁿ⁻¹    a series of n terms, with use_cayley_neumann
    Rᵢ = (I − Q)·(I + Q)⁻¹                  without it; this one turns the other way

Q is skew-symmetric, and oft_R holds what is above its diagonal: (blocks, b·(b − 1)/2). The series
is as peft 0.21.2 sums it up: I + 2Q for two terms, and I + 2Q + 2Q² + Q³ for three and for four.
`block_share`: one block for all. `coft`: blocks beyond a length of eps / √blocks are scaled back
to it. Where `oft_block_size` does not divide the inputs peft takes the nearest size that does,
which the tensor shows. Of a convolution whose kernel has more than one element peft's forward pass
adds up overlapping patches that are rotated, which is no convolution; so it is refused.

Roles: oft_R.weight, oft_embedding_R.weight.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np

from adapterhub.adapter import Adapter
from adapterhub.errors import NotMergeable
from adapterhub.methods.computed import fp32
from adapterhub.methods.generic import idle, problems, ranks, signature
from adapterhub.methods.meaning import Meaning, Transform, Values
from adapterhub.methods.mergeable import Settings, adapted, complete, multiplied, replacements
from adapterhub.methods.rotations import (
    LARGEST_EXACT,
    Wide,
    by_block,
    cayley,
    folded,
    repeated,
    side_of,
    skew,
)
from adapterhub.tensorfile import Tensor

__all__ = ["idle", "meaning", "parts", "problems", "ranks", "signature"]
EMBEDDING = "oft_embedding_R.weight"
ROLES = ("oft_R.weight", EMBEDDING)
MOST_TERMS = 1000


def meaning(adapter: Adapter, *, base_is_initialised: bool = False) -> Meaning:
    return complete(adapter, _own(adapter))


def parts(adapter: Adapter) -> Meaning:
    return (*_own(adapter), *replacements(adapter))


def _own(adapter: Adapter) -> Iterator[Transform]:
    settings = Settings(adapter)
    for module, roles in adapted(adapter):
        for role in ROLES:
            if role in roles:
                yield _rotation(module, role, roles[role], settings)


def _rotation(module: str, role: str, tensor: Tensor, settings: Settings) -> Transform:
    blocks, entries = tensor.shape
    side = side_of(entries)
    shared = bool(settings.get("block_share")) or blocks == 1
    if series := _uses_series(settings):
        _terms(settings)  # raises before a merge begins

    def apply(weight: Values) -> Values:
        turned = _blocks(tensor, settings)
        turned = turned if role == EMBEDDING else turned.transpose(0, 2, 1)
        return by_block(weight, repeated(module, turned, weight.shape[1]))

    shape = (None, None if shared else blocks * side)
    exact = series or side <= LARGEST_EXACT
    return Transform(module, "weight", apply, shape, (role,), exact=exact, pointwise=True)


def _uses_series(settings: Settings) -> bool:
    """null says no, as to peft."""
    return bool(settings.given("use_cayley_neumann"))


def _blocks(tensor: Tensor, settings: Settings) -> Values:
    entries = fp32(tensor).astype(np.float64)
    if settings.get("coft"):
        entries = _constrained(entries, float(settings.get("eps")))
    if _uses_series(settings):
        return _series(skew(entries), _terms(settings))
    return cayley(skew(entries))


def _terms(settings: Settings) -> int:
    terms = int(settings.get("num_cayley_neumann_terms"))
    if terms > MOST_TERMS:
        raise NotMergeable(
            f"num_cayley_neumann_terms is {terms}, beyond {MOST_TERMS}",
            remedy="correct it in adapter_config.json",
        )
    return terms


def _constrained(entries: Wide, eps: float) -> Wide:
    """Each row at most as long as allowed; the matrix has every entry twice."""
    longest = eps / math.sqrt(len(entries))
    lengths = np.sqrt(2.0 * folded(entries * entries))
    beyond = lengths > longest
    gains = np.where(beyond, longest / np.where(beyond, lengths, 1.0), 1.0)
    return entries * gains[:, None]


def _series(turns: Wide, terms: int) -> Values:
    """Only for `terms` of 3 and more does a power stand alone at the end."""
    made = np.broadcast_to(np.eye(turns.shape[-1]), turns.shape).copy()
    if terms > 1:
        made += 2.0 * turns
    if terms < 3:
        return made.astype(np.float32)
    power = _powers(turns, turns)
    made += 2.0 * power
    for _ in range(3, terms - 1):
        power = _powers(power, turns)
        made += 2.0 * power
    return (made + _powers(power, turns)).astype(np.float32)


def _powers(left: Wide, right: Wide) -> Wide:
    narrow = [
        (one.astype(np.float32), other.astype(np.float32))
        for one, other in zip(left, right, strict=True)
    ]
    return np.stack([multiplied(one, other) for one, other in narrow]).astype(np.float64)
