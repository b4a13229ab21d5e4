"""Two deltas on the arc between them: slerp of the whole matrix, or of each of its rows or columns.

Shoemake, Animating rotation with quaternion curves, SIGGRAPH 1985. The lengths are not made equal:
as in mergekit, the coefficients of directions are put on the deltas themselves. mergekit's slerp
does so with whole weights, between which there is hardly an angle; its nuslerp, with a base model,
with deltas as here.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from adapterhub.composing.blocks import blocks, each
from adapterhub.composing.factored import Matrix
from adapterhub.composing.methods.row import Given
from adapterhub.errors import InvalidOption

_ALIKE = 0.9995  # mergekit's, for slerp
_FLAT = 1 - 2.0**-25  # no cosine in fp32, which mergekit computes in, lies between this and 1


def slerp(deltas: list[Matrix], weights: Sequence[float], given: Given) -> Matrix:
    """sin((1-t)·θ)/sin θ · v₀ + sin(t·θ)/sin θ · v₁,  vᵢ = wᵢ·Δᵢ as one vector, θ their angle.

    `t` from 0 (the first adapter) to 1. Nearly parallel or opposed (|cos θ| > 0.9995), they are
    interpolated linearly, (1-t)·v₀ + t·v₁. A delta of zeros, or of an adapter that leaves the
    matrix alone, has no direction and counts as orthogonal (θ = π/2). Both are mergekit's.
    """
    pair = _pair(deltas, given)
    both = given.weights or tuple(weights)
    return _arc(deltas, pair, both, given.parameters["t"], _ALIKE, None)


def nuslerp(deltas: list[Matrix], weights: Sequence[float], given: Given) -> Matrix:
    """slerp with t = w₁ / (w₀ + w₁), or ½ where |w₀ + w₁| < 10⁻⁶; vᵢ = Δᵢ.

    mergekit's: https://github.com/arcee-ai/mergekit. Weights of two signs extrapolate. With
    `nuslerp_flatten` a matrix is one vector, otherwise each row (the weights into one output) is
    one, with its own θ, or with `nuslerp_row_wise` each column: in mergekit's code that switch
    takes vectors across the rows. Linear where sin θ vanishes in fp32; zeros count as orthogonal.
    """
    pair = _pair(deltas, given)
    first, second = given.weights or tuple(weights)
    both = first + second
    t = 0.5 if abs(both) < 1e-6 else second / both
    axis = None
    if not given.parameters["nuslerp_flatten"]:
        axis = 0 if given.parameters["nuslerp_row_wise"] else 1
    return _arc(deltas, pair, (1.0, 1.0), t, _FLAT, axis)


def check_sum(settings: Mapping[str, Any], weights: Sequence[float]) -> None:
    """Raises InvalidOption where the weights' sum, of which one is to be a share, overflows."""
    if not math.isfinite(sum(weights)):
        raise InvalidOption(
            "the weights are too large to be added up", remedy="give smaller weights"
        )


def _pair(deltas: Sequence[Matrix], given: Given) -> tuple[Matrix | None, Matrix | None]:
    """The deltas of the first and of the second adapter; None where one leaves the matrix alone."""
    found = dict(zip(given.numbers or range(2), deltas, strict=False))
    return found.get(0), found.get(1)


def _arc(
    deltas: Sequence[Matrix],
    pair: tuple[Matrix | None, Matrix | None],
    weights: Sequence[float],
    t: float,
    alike: float,
    axis: int | None,
) -> Matrix:
    """The interpolation, over the first of `deltas`. `axis`: along which the vectors run."""
    one, other = weights
    cosine = _cosine(pair, axis) * np.sign(one * other)
    first, second = _coefficients(cosine, t, alike)
    factors = (one * first, other * second)
    terms = [(d, f) for d, f in zip(pair, factors, strict=True) if d is not None]

    def work(rows: slice) -> None:
        total = np.zeros(deltas[0][rows].shape)
        for delta, factor in terms:
            here = factor[rows, None] if axis == 1 else factor
            total += np.multiply(delta[rows], here, dtype=np.float64)
        deltas[0][rows] = total

    each(deltas[0].shape, work)
    return deltas[0]


def _coefficients(cosine: Matrix, t: float, alike: float) -> tuple[Matrix, Matrix]:
    linear = np.abs(cosine) > alike
    theta = np.arccos(np.where(linear, 0.0, cosine))
    first = np.where(linear, 1 - t, np.sin((1 - t) * theta) / np.sin(theta))
    second = np.where(linear, t, np.sin(t * theta) / np.sin(theta))
    return first, second


def _cosine(pair: tuple[Matrix | None, Matrix | None], axis: int | None) -> Matrix:
    """Of the angles between the vectors: a number, or one for each row or column. 0 for zeros."""
    one, other = pair
    if one is None or other is None:
        present = other if one is None else one
        count = () if axis is None or present is None else present.shape[1 - axis]
        return np.zeros(count)
    dot, left, right = _products(one, other, axis)
    lengths = np.sqrt(left) * np.sqrt(right)
    found = np.divide(dot, lengths, out=np.zeros_like(dot), where=lengths > 0)
    cosine: Matrix = np.clip(found, -1, 1)
    return cosine


def _products(one: Matrix, other: Matrix, axis: int | None) -> Matrix:
    """Σ v₀·v₁, Σ v₀², Σ v₁² in fp64: (3,), or (3, vectors)."""

    def work(rows: slice) -> Matrix:
        x, y = one[rows].astype(np.float64), other[rows].astype(np.float64)
        return np.array([(a * b).sum(axis) for a, b in ((x, y), (x, x), (y, y))])

    if axis == 0:  # one by one: each gives three numbers for every column
        totals = np.zeros((3, one.shape[1]))
        for rows in blocks(one.shape):
            totals += work(rows)
        return totals
    found = each(one.shape, work)
    if axis == 1:
        return np.concatenate(found, axis=1)
    total: Matrix = np.array(found).sum(0)
    return total
