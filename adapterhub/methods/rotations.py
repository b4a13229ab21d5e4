"""Blocks that rotate: skew-symmetric matrices, Cayley's transform of them, and products by block.

All of it has the same bits everywhere but for blocks larger than LARGEST_EXACT, which a library
inverts. Blocks are (blocks, b, b).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from adapterhub.errors import BaseMismatch
from adapterhub.methods.meaning import Values
from adapterhub.methods.mergeable import multiplied
from adapterhub.tensorfile import shown

Wide = NDArray[np.float64]
LARGEST_EXACT = 64


def skew(entries: NDArray[Any]) -> Wide:
    """(blocks, b·(b − 1)/2), those above the diagonal row by row → (blocks, b, b) in fp64."""
    blocks, count = entries.shape
    side = side_of(count)
    made = np.zeros((blocks, side, side))
    rows, columns = np.triu_indices(side, 1)
    made[:, rows, columns] = entries
    made[:, columns, rows] = -made[:, rows, columns]
    return made


def side_of(count: int) -> int:
    """b of b·(b − 1)/2; one for none."""
    return (1 + math.isqrt(1 + 8 * count)) // 2


def cayley(turns: Wide) -> Values:
    """(I − Q)·(I + Q)⁻¹ for each skew-symmetric Q of (blocks, b, b), computed in fp64.

    Both factors commute, so it is the solution X of (I + Q)·X = I − Q.
    """
    eye = np.eye(turns.shape[-1])
    solve = _eliminate if turns.shape[-1] <= LARGEST_EXACT else np.linalg.solve
    return solve(eye + turns, eye - turns).astype(np.float32)


def _eliminate(left: Wide, right: Wide) -> Wide:
    """X of left·X = right by Gauss and Jordan, without pivots.

    I + Q needs none: what remains of it after each step is again the identity's positive part and
    a skew-symmetric one, so that no pivot is smaller than 1.
    """
    both = np.concatenate([left, right], axis=-1)
    for k in range(left.shape[-1]):
        both[:, k] /= both[:, k, k].copy()[:, None]
        factors = both[:, :, k].copy()
        factors[:, k] = 0.0
        both -= factors[:, :, None] * both[:, k][:, None, :]
    return both[:, :, left.shape[-1] :]


def by_block(weight: Values, blocks: Values) -> Values:
    """The columns of `weight`, (out, blocks · b), each b of them times their block, in place."""
    side = blocks.shape[-1]
    for number, block in enumerate(blocks):
        columns = slice(number * side, (number + 1) * side)
        weight[:, columns] = multiplied(weight[:, columns], block)
    return weight


def repeated(module: str, blocks: Values, size: int) -> Values:
    """As many blocks as `size` columns take, where one stands for all. Raises BaseMismatch."""
    side = blocks.shape[-1]
    if len(blocks) * side == size:
        return blocks
    if len(blocks) != 1 or size % side:
        raise BaseMismatch(
            f"{shown(module)}: blocks of {side} do not divide the {size} inputs of the base"
        )
    return np.broadcast_to(blocks, (size // side, side, side))


def folded(values: Wide) -> Wide:
    """The sums over the last axis, (…, n) → (…,), in an order that is the same everywhere."""
    while (size := values.shape[-1]) > 1:
        half = size // 2
        summed = values[..., :half] + values[..., half : 2 * half]
        if size % 2:
            summed = np.concatenate([summed, values[..., 2 * half :]], axis=-1)
        values = summed
    return values[..., 0] if values.shape[-1] else np.zeros(values.shape[:-1])


def in_rows(weight: Values, change: Callable[[Wide], Wide], elements: int = 1 << 20) -> Values:
    """`change` of some rows at a time in fp64, written back in place with one rounding."""
    step = max(1, elements // max(1, weight.shape[1]))
    for start in range(0, len(weight), step):
        rows = slice(start, start + step)
        weight[rows] = change(weight[rows].astype(np.float64))
    return weight
