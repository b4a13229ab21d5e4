"""LoKr: a Kronecker product (Yeh et al., https://arxiv.org/abs/2309.14859).

    ΔW = alpha/r · w1 ⊗ w2      w1: (o1, i1)   w2: (o2, i2, *kernel)   out = o1·o2   in = i1·i2

    w1 whole, or w1_a · w1_b                                w1_a: (o1, r)   w1_b: (r, i1)
    w2 whole, or w2_a · w2_b                                w2_a: (o2, r)   w2_b: (r, i2 · kernel)
       or Tucker's Σ t2[p, q, …] · w2_a[p, o] · w2_b[q, i]  w2_a: (r, o2)   w2_b: (r, i2)

Which form it is, the tensors tell. alpha/r by their patterns, also where nothing has a rank: with
both factors whole this is KronA (Edalati et al., https://arxiv.org/abs/2212.10650). Sums are those
of DESIGN §4 and products are rounded once, so the bits are the same everywhere.

Of a whole w2 of a Conv1d, (o2, i2, kernel), PEFT 0.21.2 takes the product as if w1 were (1, o1, i1)
and reads the numbers as (out, in, kernel); so does this file, since that is what was trained.

Roles: lokr_w1, lokr_w1_a, lokr_w1_b, lokr_w2, lokr_w2_a, lokr_w2_b, lokr_t2.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np

from adapterhub.adapter import Adapter
from adapterhub.methods.computed import Computed, fp32
from adapterhub.methods.generic import idle, problems, ranks, signature
from adapterhub.methods.meaning import Delta, Meaning, Values
from adapterhub.methods.mergeable import (
    Roles,
    Settings,
    adapted,
    complete,
    multiplied,
    product,
    replacements,
)

__all__ = ["idle", "meaning", "parts", "problems", "ranks", "signature"]


def meaning(adapter: Adapter, *, base_is_initialised: bool = False) -> Meaning:
    return complete(adapter, _own(adapter))


def parts(adapter: Adapter) -> Meaning:
    return (*_own(adapter), *replacements(adapter))


def _own(adapter: Adapter) -> Iterator[Delta]:
    settings = Settings(adapter)
    for module, roles in adapted(adapter):
        yield Delta(module, _value(roles), settings.over_rank(module), tuple(roles))


def _value(roles: Roles) -> Computed:
    first, second = _first_shape(roles), _second_shape(roles)
    shape = (first[0] * second[0], first[1] * math.prod(second[1:]))

    def compute() -> Values:
        one, other = _first(roles), _second(roles)
        if other.ndim == 3:
            return _kronecker(one[None], other).reshape(shape)
        return _kronecker(one.reshape(*one.shape, *(1,) * (other.ndim - 2)), other).reshape(shape)

    return Computed(shape, compute, tuple(roles.values()))


def _kronecker(one: Values, other: Values) -> Values:
    """Of arrays with as many dimensions: at (i·m + k, j·n + l, …) is one[i, j, …]·other[k, l, …].

    Multiplied element by element, as np.kron does too, but without its choice of a routine.
    """
    wide = one.reshape([size for side in one.shape for size in (side, 1)])
    narrow = other.reshape([size for side in other.shape for size in (1, side)])
    sides = [a * b for a, b in zip(one.shape, other.shape, strict=True)]
    return np.multiply(wide, narrow).reshape(sides)


def _first_shape(roles: Roles) -> tuple[int, ...]:
    if whole := roles.get("lokr_w1"):
        return whole.shape
    return roles["lokr_w1_a"].shape[0], roles["lokr_w1_b"].shape[1]


def _second_shape(roles: Roles) -> tuple[int, ...]:
    if whole := roles.get("lokr_w2"):
        return whole.shape
    a, b, core = roles["lokr_w2_a"], roles["lokr_w2_b"], roles.get("lokr_t2")
    if core is None:
        return a.shape[0], b.shape[1]
    return a.shape[1], b.shape[1], *core.shape[2:]


def _first(roles: Roles) -> Values:
    whole = roles.get("lokr_w1")
    return fp32(whole) if whole else product(roles["lokr_w1_a"], roles["lokr_w1_b"])


def _second(roles: Roles) -> Values:
    whole, core = roles.get("lokr_w2"), roles.get("lokr_t2")
    if whole:
        return fp32(whole)
    if core:
        return _tucker(fp32(core), fp32(roles["lokr_w2_a"]), fp32(roles["lokr_w2_b"]))
    return product(roles["lokr_w2_a"], roles["lokr_w2_b"])


def _tucker(core: Values, a: Values, b: Values) -> Values:
    """(r, r, *kernel), (r, o), (r, i) → (o, i, *kernel): over the rank of a first, then of b."""
    rank, kernel = core.shape[1], core.shape[2:]
    half = multiplied(np.ascontiguousarray(a.T), core.reshape(core.shape[0], -1))
    half = np.moveaxis(half.reshape(a.shape[1], rank, -1), 1, 2)  # (o, kernel, r)
    found = multiplied(np.ascontiguousarray(half).reshape(-1, rank), b)
    found = found.reshape(a.shape[1], -1, b.shape[1])
    return np.ascontiguousarray(np.moveaxis(found, 1, 2)).reshape(a.shape[1], b.shape[1], *kernel)
