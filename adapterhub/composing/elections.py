"""Deltas that were thinned out become one, in place of the first: by a sum, or by elected signs."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from adapterhub.composing.blocks import each
from adapterhub.composing.factored import Matrix


def weighted(deltas: Sequence[Matrix], weights: Sequence[float], factor: float = 1.0) -> Matrix:
    """factor · Σ wᵢ·δᵢ, in fp64 for each block, rounded once, written over the first delta."""

    def work(rows: slice) -> None:
        total = np.zeros(deltas[0][rows].shape)
        for delta, weight in zip(deltas, weights, strict=True):
            total += np.multiply(delta[rows], factor * weight, dtype=np.float64)
        deltas[0][rows] = total

    each(deltas[0].shape, work)
    return deltas[0]


def elected(
    deltas: Sequence[Matrix],
    weights: Sequence[float],
    *,
    votes: Sequence[float] | None = None,
    by: str = "total",
    normalize: bool = True,
    factor: float = 1.0,
) -> Matrix:
    """For each element the sum over the inputs that have the elected sign; over the first delta.

    s = +1 where Σ vᵢ·δᵢ ≥ 0, else −1 (`by` "total"), or where Σ sign(vᵢ·δᵢ) ≥ 0 ("frequency");
    A = {i: sign(wᵢ·δᵢ) = s};  result = factor · Σ_A wᵢ·δᵢ, and if `normalize`, divided by Σ_A |wᵢ|.
    Zeros have no sign: they neither vote nor count. `votes`: the vᵢ, by default the weights.
    """
    voices = list(zip(deltas, votes or weights, strict=True))

    def work(rows: slice) -> None:
        positive = _election(voices, rows, by)
        total, share = np.zeros(positive.shape), np.zeros(positive.shape)
        for delta, weight in zip(deltas, weights, strict=True):
            each_one = np.multiply(delta[rows], weight, dtype=np.float64)
            agrees = np.where(positive, each_one > 0, each_one < 0)
            np.add(total, each_one, out=total, where=agrees)
            np.add(share, abs(weight), out=share, where=agrees)
        if normalize:
            np.divide(total, share, out=total, where=share > 0)
        deltas[0][rows] = np.multiply(total, factor, out=total)

    each(deltas[0].shape, work)
    return deltas[0]


def _election(voices: Sequence[tuple[Matrix, float]], rows: slice, by: str) -> Matrix:
    """True where the sign + is elected."""
    total = np.zeros(voices[0][0][rows].shape)
    for delta, vote in voices:
        if by == "total":
            total += np.multiply(delta[rows], vote, dtype=np.float64)
        else:
            total += np.sign(delta[rows]) * np.sign(vote)
    return total >= 0
