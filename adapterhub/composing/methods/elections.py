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
        signs = _election(voices, rows, by)
        total, share = np.zeros(signs.shape), np.zeros(signs.shape)
        for delta, weight in zip(deltas, weights, strict=True):
            agrees = np.multiply(delta[rows], weight, dtype=np.float64)
            agrees *= signs
            total += np.maximum(agrees, 0, out=agrees)
            if normalize:
                share += np.multiply(agrees > 0, abs(weight), out=agrees)
        if normalize:
            share[share == 0] = 1
            total /= share
        total *= signs
        deltas[0][rows] = np.multiply(total, factor, out=total)

    each(deltas[0].shape, work)
    return deltas[0]


def _election(voices: Sequence[tuple[Matrix, float]], rows: slice, by: str) -> Matrix:
    """1 and -1, in fp64."""
    total = np.zeros(voices[0][0][rows].shape)
    for delta, vote in voices:
        if by == "total":
            total += np.multiply(delta[rows], vote, dtype=np.float64)
        else:
            total += np.sign(delta[rows]) * np.sign(vote)
    signs = np.multiply(total >= 0, 2.0, out=total)
    signs -= 1
    return signs
