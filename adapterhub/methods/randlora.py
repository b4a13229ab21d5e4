"""RandLoRA: random bases, weighted (Albert et al., https://arxiv.org/abs/2502.00987).

    ΔW  = alpha/r · Bf · Af            where in ≤ out
    ΔWᵀ = alpha/r · Bf · Af            where in > out

    Af[i·n + j] = λ[i, j] · A[i, 0, :small] ⊙ γ[j]      λ: (r, n)   γ: (n, small)
    Bf[:, j·r + i] = B[:large, j, i]                    large, small: the sides of W

Rows of Af and columns of Bf meet by their number, in the two orders that PEFT gives them. A:
(r, 1, …) and B: (…, bases, r) are the same for all modules, and saved, in peft 0.21 once more in
each module; without `save_projection` they are what torch draws by `projection_prng_key`, and the
result is no longer the same everywhere. The product has full rank and is summed as any other; Af is
rounded to fp32 twice. Roles: randlora_lambda, randlora_gamma; shared randlora_A, randlora_B.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from functools import partial

import numpy as np

from adapterhub.adapter import Adapter
from adapterhub.errors import BaseMismatch, NotMergeable
from adapterhub.methods import projections
from adapterhub.methods.computed import Computed, fp32
from adapterhub.methods.generic import problems, ranks, signature
from adapterhub.methods.meaning import LowRank, Meaning, Shaped, ShapeOf, Values
from adapterhub.methods.mergeable import Roles, Settings, adapted, complete, replacements
from adapterhub.methods.random_factors import Pair, check_sides, factor, largest, saved, seed, sides
from adapterhub.tensorfile import Tensor, shown

__all__ = ["idle", "meaning", "parts", "problems", "ranks", "signature"]
SHARED = ("randlora_A", "randlora_B")
OWN = ("randlora_lambda", "randlora_gamma")


def meaning(adapter: Adapter, *, base_is_initialised: bool = False) -> Meaning:
    _refuse_unlike_copies(adapter)
    return complete(adapter, _own(adapter), idle(adapter))


def parts(adapter: Adapter) -> Meaning:
    return (*_own(adapter), *replacements(adapter))


def idle(adapter: Adapter) -> tuple[tuple[str, str, str], ...]:
    """The copies of what all modules share."""
    shared = adapter.modules.get("", {})
    return tuple(
        (module, role, f"a copy of {role}, which all modules share")
        for module, roles in adapted(adapter)
        for role in SHARED
        if role in roles and role in shared
    )


def _refuse_unlike_copies(adapter: Adapter) -> None:
    for module, role, _ in idle(adapter):
        if not _same(adapter.modules[module][role], adapter.modules[""][role]):
            raise NotMergeable(
                f"{shown(module)}.{role} is not the {role} that all modules share",
                remedy="load it with peft and save it again",
            )


def _same(one: Tensor, other: Tensor) -> bool:
    alike = (one.dtype, one.shape) == (other.dtype, other.shape)
    return alike and all(a == b for a, b in zip(one.pieces(), other.pieces(), strict=True))


def _own(adapter: Adapter) -> Iterator[Shaped]:
    for module, roles in adapted(adapter):
        yield Shaped(module, partial(_pair, adapter, module, roles), OWN)


def _pair(adapter: Adapter, module: str, roles: Roles, shape_of: ShapeOf) -> LowRank:
    out, into = sides(module, shape_of)
    large, small = max(out, into), min(out, into)
    shared = saved(adapter, "randlora")
    weights, gains = roles[OWN[0]], roles[OWN[1]]
    count = weights.shape[1]
    if gains.shape != (count, small) or count != math.ceil(small / weights.shape[0]):
        raise BaseMismatch(
            f"{shown(module)}: the adapter has {count} bases and gains of {list(gains.shape)}, the "
            f"base a weight of {[out, into]}"
        )
    if shared:
        has = (shared[1].shape[0], shared[0].shape[2])
        check_sides(module, has, (large, small))
        check_sides(module, (shared[1].shape[1], shared[1].shape[2]), (count, weights.shape[0]))
    remake = partial(_remade, adapter, weights.shape[0], shape_of) if not shared else _never
    wide, tall = _wide(roles, small, shared, remake), _tall(roles, large, shared, remake)
    scale = float(Settings(adapter).get("randlora_alpha")) / weights.shape[0]
    a, b = (wide, tall) if small == into else (_turned(tall), _turned(wide))
    return LowRank(module, a, b, scale, "linear", OWN)


def _never() -> Pair:
    raise RuntimeError("saved projections are not made anew")


def _remade(adapter: Adapter, rank: int, shape_of: ShapeOf) -> Pair:
    settings, both = Settings(adapter), largest(adapter, shape_of)
    sparsity = 3.0 if settings.get("sparse") else None
    if settings.get("very_sparse"):
        sparsity = math.sqrt(min(both))
    return projections.randlora(seed(adapter), rank, max(both), min(both), sparsity)


def _wide(
    roles: Roles, small: int, shared: tuple[Tensor, Tensor] | None, remake: Callable[[], Pair]
) -> Computed:
    """Af: (r·n, small)."""
    weights, gains = roles[OWN[0]], roles[OWN[1]]
    rows = math.prod(weights.shape)

    def scaled(a: Values, b: Values) -> Values:
        found = np.multiply(fp32(weights)[:, :, None], a[:, :, :small])
        return np.multiply(found, fp32(gains), out=found).reshape(rows, small)

    return factor((rows, small), shared, remake, scaled, (weights, gains))


def _tall(
    roles: Roles, large: int, shared: tuple[Tensor, Tensor] | None, remake: Callable[[], Pair]
) -> Computed:
    """Bf: (large, n·r)."""
    rank, count = roles[OWN[0]].shape

    def scaled(a: Values, b: Values) -> Values:
        return np.array(b[:large, :count], order="C").reshape(large, count * rank)

    return factor((large, count * rank), shared, remake, scaled, ())


def _turned(tensor: Computed) -> Computed:
    shape = (tensor.shape[1], tensor.shape[0])
    return Computed(shape, lambda: tensor.read().T, tensor.sources, tensor.exact)
