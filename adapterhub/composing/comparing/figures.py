"""How alike deltas are: lengths, angles, subspaces, signs. fp64 throughout.

A delta that is known by its factors is never formed: with Δ = U·diag(s)·V (see `factored.svd`),

    ⟨Δ₁, Δ₂⟩ = s₁ᵀ · (U₁ᵀ·U₂ ∘ V₁·V₂ᵀ) · s₂

and the singular values of U₁ᵀ·U₂ and V₁·V₂ᵀ are the cosines of the principal angles between the
column spaces and between the row spaces (Björck & Golub 1973, https://doi.org/10.2307/2005662).
Those are the spaces of B and of A where these have full rank, however a delta is taken apart into
factors. Signs are those of single elements: of all, or of a sample, block by block.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from itertools import combinations
from typing import Protocol

import numpy as np

from adapterhub.composing.factored import Factors, Matrix, Svd, svd

# Singular values below this share of ‖b‖·‖a‖ are rounding in fp64 of what cancels out …
_NOISE = 2.0**-42
# … and directions below this share of the strongest one that of factors in fp32.
_ROUNDING = 2.0**-23
_SAMPLE = 1 << 20  # elements of a matrix whose signs are looked at, unless all are …
_SIDE = 1 << 10  # … of so many rows and columns at least, if there are as many
_BLOCK = 1 << 19  # elements held at a time
ALL = slice(None)


class Delta(Protocol):
    """A matrix (out, in) of which parts can be had."""

    @property
    def shape(self) -> tuple[int, int]: ...

    @property
    def norm(self) -> float:
        """‖Δ‖ in the Frobenius norm."""

    def rows(self, which: slice | Matrix, columns: slice | Matrix = ALL) -> Matrix:
        """What some of its rows have in some of its columns, fp64."""


@dataclass(frozen=True, eq=False)
class LowRankDelta:
    """`factors` in fp64. `found`: without the singular values that are nothing but rounding;
    the first `rank` of them count as directions."""

    factors: Factors
    found: Svd
    rank: int

    @property
    def shape(self) -> tuple[int, int]:
        return self.factors.shape

    @property
    def norm(self) -> float:
        return float(np.sqrt(np.square(self.found.s).sum()))

    def rows(self, which: slice | Matrix, columns: slice | Matrix = ALL) -> Matrix:
        return self.factors.b[which] @ self.factors.a[:, columns]


@dataclass(frozen=True, eq=False)
class DenseDelta:
    """scale · values; values: (out, in)."""

    values: Matrix
    scale: float

    @property
    def shape(self) -> tuple[int, int]:
        return int(self.values.shape[0]), int(self.values.shape[1])

    @cached_property
    def norm(self) -> float:
        return float(np.sqrt(_by_blocks(self, self)))

    def rows(self, which: slice | Matrix, columns: slice | Matrix = ALL) -> Matrix:
        if isinstance(which, slice) or isinstance(columns, slice):
            found = self.values[which][:, columns]
        else:
            found = self.values[np.ix_(which, columns)]  # no whole rows
        return self.scale * found.astype(np.float64)


def low_rank(factors: Factors) -> LowRankDelta:
    """The delta b·a, decomposed. Raises NotMergeable for values that are NaN or infinite."""
    both = factors.double()
    found = svd(both)
    noise = _NOISE * np.sqrt(np.square(both.b).sum() * np.square(both.a).sum())
    kept = found.first(int(np.count_nonzero(found.s > noise)))
    strong = kept.s > _ROUNDING * kept.s[:1]
    return LowRankDelta(both, kept, int(np.count_nonzero(strong)))


# --- two of them ------------------------------------------------------------------------------


@dataclass(frozen=True)
class Overlap:
    """Of two subspaces. `mean`: Σ cos² of the principal angles over the smaller dimension, 0 where
    they are orthogonal and 1 where one holds the other (the φ of LoRA,
    https://arxiv.org/abs/2106.09685, §7.2). `largest`: the largest of the cosines.
    """

    mean: float
    largest: float


@dataclass(frozen=True)
class Meeting:
    """`inner`: ⟨Δ₁, Δ₂⟩. `columns`, `rows`: of the spaces, None where one of the deltas is 0 or
    not known by factors."""

    inner: float
    columns: Overlap | None = None
    rows: Overlap | None = None


def meet(one: Delta, other: Delta) -> Meeting:
    """The two are of one shape."""
    if not (isinstance(one, LowRankDelta) and isinstance(other, LowRankDelta)):
        return Meeting(_by_blocks(one, other))
    columns = one.found.u.T @ other.found.u
    rows = one.found.vt @ other.found.vt.T
    inner = float(one.found.s @ (columns * rows) @ other.found.s)
    if not (one.rank and other.rank):
        return Meeting(inner)
    ours = slice(one.rank), slice(other.rank)
    return Meeting(inner, _overlap(columns[ours]), _overlap(rows[ours]))


def _overlap(cosines: Matrix) -> Overlap:
    values = np.clip(np.linalg.svd(cosines, compute_uv=False), 0.0, 1.0)
    return Overlap(float(np.square(values).mean()), float(values[0]))


def _by_blocks(one: Delta, other: Delta) -> float:
    """⟨one, other⟩ with some rows of each in memory."""
    out, into = one.shape
    step = max(1, _BLOCK // max(1, into))
    total = 0.0
    for start in range(0, out, step):
        rows = slice(start, start + step)
        block = one.rows(rows)
        total += float(np.vdot(block, block if one is other else other.rows(rows)))
    return total


def cosine(inner: float, one: float, other: float) -> float | None:
    """Of the angle, by the inner product and both norms; None where one is 0."""
    if not (one and other):
        return None
    return max(-1.0, min(1.0, inner / one / other))


# --- signs ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Signs:
    """Of `looked_at` elements, `both` are not 0 in either delta, and of these `conflicts` differ in
    sign."""

    looked_at: int
    both: int
    conflicts: int


def sampled(shape: tuple[int, int], *, exact: bool) -> tuple[Matrix, slice | Matrix]:
    """The numbers of the rows, and of the columns, whose elements' signs are looked at, in order.

    All of them, or about 2²⁰ elements, where some of 1024 rows or more meet some of 1024 columns or
    more: in a delta of low rank the signs of a whole row, or column, differ together, so that few
    long rows tell little. The standard error of a share is at most √(1/rows + 1/columns) / 2, here
    2.2 %. The choice hangs on the shape alone, and is the same on every machine.
    """
    out, into = shape
    if exact or out * into <= _SAMPLE:
        return np.arange(out), ALL
    rows = _some(out, max(_SIDE, -(-_SAMPLE // into)), 0)
    columns = max(_SIDE, -(-_SAMPLE // out))
    return rows, ALL if columns >= into else _some(into, columns, 1)


def _some(size: int, count: int, seed: int) -> Matrix:
    if count >= size:
        return np.arange(size)
    dice = np.random.Philox(key=seed).random_raw(size)
    return np.sort(np.argsort(dice, kind="stable")[:count])


def signs(
    deltas: Mapping[int, Delta], rows: Matrix, columns: slice | Matrix = ALL
) -> dict[tuple[int, int], Signs]:
    """Of each pair of deltas, which are of one shape, by their numbers."""
    pairs = list(combinations(deltas, 2))
    counts = {pair: [0, 0] for pair in pairs}
    across = len(np.arange(next(iter(deltas.values())).shape[1])[columns])
    step = max(1, _BLOCK // max(1, across))
    for start in range(0, len(rows), step):
        which = rows[start : start + step]
        blocks = {number: delta.rows(which, columns) for number, delta in deltas.items()}
        marks = {number: (block > 0, block < 0) for number, block in blocks.items()}
        for one, other in pairs:
            both, conflicts = _counted(marks[one], marks[other])
            counts[one, other][0] += both
            counts[one, other][1] += conflicts
    looked_at = len(rows) * across
    return {pair: Signs(looked_at, *found) for pair, found in counts.items()}


def _counted(one: tuple[Matrix, Matrix], other: tuple[Matrix, Matrix]) -> tuple[int, int]:
    alike = np.count_nonzero(one[0] & other[0]) + np.count_nonzero(one[1] & other[1])
    unlike = np.count_nonzero(one[0] & other[1]) + np.count_nonzero(one[1] & other[0])
    return int(alike + unlike), int(unlike)
