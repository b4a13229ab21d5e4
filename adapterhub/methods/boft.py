"""BOFT: butterflies of rotated blocks (Liu et al., https://arxiv.org/abs/2311.06243).

    W' = s ⊙ (W · Rᵀ)      R = R_N · … · R_1      R_i = P_i · diag(C_1, …, C_D) · P_iᵀ
    C = (I − Q)·(I + Q)⁻¹      Q = (B − Bᵀ) / 2

boft_R: (N, D, b, b), the B; boft_s: (out, 1), or (1, out) of a convolution, whose inputs count its
kernel's elements too (see hra.py for what it keeps). The bias is not scaled. P_i, of blocks of
b·2^(i−1) inputs, brings together the halves of the original blocks: those of even number first.
For N = 1 it changes nothing.

Roles: boft_R, boft_s.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from adapterhub.adapter import Adapter
from adapterhub.errors import InvalidAdapter
from adapterhub.methods.computed import fp32
from adapterhub.methods.generic import idle, problems, ranks, signature
from adapterhub.methods.meaning import Meaning, Transform, Values
from adapterhub.methods.mergeable import Roles, adapted, complete, replacements
from adapterhub.methods.rotations import LARGEST_EXACT, by_block, cayley
from adapterhub.tensorfile import shown

__all__ = ["idle", "meaning", "parts", "problems", "ranks", "signature"]
Order = NDArray[np.intp]


def meaning(adapter: Adapter, *, base_is_initialised: bool = False) -> Meaning:
    return complete(adapter, _own(adapter))


def parts(adapter: Adapter) -> Meaning:
    return (*_own(adapter), *replacements(adapter))


def _own(adapter: Adapter) -> Iterator[Transform]:
    for module, roles in adapted(adapter):
        yield _rotation(module, roles)


def _rotation(module: str, roles: Roles) -> Transform:
    factors, blocks, side, _ = roles["boft_R"].shape
    if factors > 1 and (side % 2 or blocks % 2 ** (factors - 1)):
        raise InvalidAdapter(
            f"{shown(module)}: {factors} butterflies need blocks of even size, and their number "
            f"({blocks}) a multiple of {2 ** (factors - 1)}",
            remedy="re-export the adapter",
        )
    into = blocks * side
    out = math.prod(roles["boft_s"].shape)

    def apply(weight: Values) -> Values:
        data = fp32(roles["boft_R"]).astype(np.float64)
        for number in range(factors):
            turned = cayley((data[number] - data[number].transpose(0, 2, 1)) / 2)
            _turn(weight, turned.transpose(0, 2, 1), _order(into, side, number))
        return np.multiply(weight, fp32(roles["boft_s"]).reshape(-1, 1), out=weight)

    exact = side <= LARGEST_EXACT
    return Transform(module, "weight", apply, (out, into), tuple(roles), exact=exact)


def _turn(weight: Values, blocks: Values, order: Order) -> None:
    """W · P · diag(blocks) · Pᵀ, in place; column order[i] of W·P is column i of W."""
    moved = np.empty_like(weight)
    moved[:, order] = weight
    weight[...] = by_block(moved, blocks)[:, order]


def _order(into: int, side: int, number: int) -> Order:
    """Row i of P_number has its one in column order[i]; in halves of the original blocks."""
    if number == 0:
        return np.arange(into)
    halves = np.arange(into).reshape(-1, 2 ** (number + 1), side // 2)
    return np.concatenate([halves[:, 0::2], halves[:, 1::2]], axis=1).reshape(-1)
