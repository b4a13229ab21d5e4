"""VeRA: random factors and trained vectors (Kopiczko et al., https://arxiv.org/abs/2310.11454).

    ΔW = diag(b) · B[:out] · diag(d) · A[:, :in]      d: (r,)   b: (out,)

A: (r, largest in) and B: (largest out, r) are the same for all modules, and saved; without
`save_projection` they are what torch draws by `projection_prng_key` for the largest sides among the
adapted weights, and the result is no longer the same everywhere. Each product of two fp32 is
rounded once. Roles: vera_lambda_d, vera_lambda_b; shared vera_A, vera_B.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

import numpy as np

from adapterhub.adapter import Adapter
from adapterhub.methods import projections
from adapterhub.methods.computed import fp32
from adapterhub.methods.generic import idle, problems, ranks, signature
from adapterhub.methods.meaning import LowRank, Meaning, Shaped, ShapeOf
from adapterhub.methods.mergeable import Roles, adapted, complete, replacements
from adapterhub.methods.random_factors import Pair, check_sides, factor, largest, saved, seed, sides

__all__ = ["idle", "meaning", "parts", "problems", "ranks", "signature"]
PREFIX = "vera"


def meaning(adapter: Adapter, *, base_is_initialised: bool = False) -> Meaning:
    return complete(adapter, shaped(adapter, PREFIX, projections.vera))


def parts(adapter: Adapter) -> Meaning:
    return (*shaped(adapter, PREFIX, projections.vera), *replacements(adapter))


Draw = Callable[[int, int, int, int], Pair]


def shaped(adapter: Adapter, prefix: str, draw: Draw) -> Iterator[Shaped]:
    """A part for each module; `draw` makes A and B of a seed, a rank, and the largest sides."""
    for module, roles in adapted(adapter):
        yield Shaped(module, partial(_pair, adapter, prefix, draw, module, roles), tuple(roles))


def _pair(
    adapter: Adapter, prefix: str, draw: Draw, module: str, roles: Roles, shape_of: ShapeOf
) -> LowRank:
    rows, ranks = roles[f"{prefix}_lambda_b"], roles[f"{prefix}_lambda_d"]
    into = sides(module, shape_of)[1]
    shared = saved(adapter, prefix)
    (out,), rank = rows.shape, _rank(prefix, ranks.shape[0])
    if shared:
        check_sides(module, (shared[1].shape[0], shared[0].shape[1]), (out, into))
        remake: Callable[[], Pair] = partial(draw, 0, 0, 0, 0)
    else:
        remake = partial(draw, seed(adapter), rank, *largest(adapter, shape_of))
    a = factor(
        (rank, into),
        shared,
        remake,
        lambda a, b: np.multiply(fp32(ranks)[:rank, None], a[:rank, :into]),
        (ranks,),
    )
    b = factor(
        (out, rank), shared, remake, lambda a, b: np.multiply(fp32(rows)[:, None], b[:out]), (rows,)
    )
    return LowRank(module, a, b, 1.0, "linear", tuple(roles))


def _rank(prefix: str, entries: int) -> int:
    """PVeRA's vector has a mean and a variance for each rank."""
    return entries // 2 if prefix == "pvera" else entries
