"""PEFT's own combinations: what `add_weighted_adapter` of peft 0.21 computes, where it is right.

Those without `_svd` work on the factors: on A with the weights sgn(wᵢsᵢ)·√|wᵢsᵢ| and on B with
√|wᵢsᵢ|, each by itself, and multiply after that. The product has terms Bᵢ·Aⱼ of different adapters:
even `peft_linear` is far from the sum, and stands here for results that PEFT gave. Those with
`_svd` work on the deltas, and are truncated to the largest rank of the adapters, or `--rank`.

TIES elects signs before the weights (https://arxiv.org/abs/2306.01708), DARE divides by the density
(https://arxiv.org/abs/2311.03099); one adapter alone is only scaled, as in PEFT. Not PEFT's: chance
is that of a seed; rsLoRA's scale counts once and lora_bias is added, which PEFT gets wrong.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence

import numpy as np

from adapterhub.composing.factored import Factors, Matrix
from adapterhub.composing.methods import Delta, Given, Made

_BLOCK = 1 << 20  # elements worked on at a time: what is fp64 or a mask is never a whole matrix
_HALF = 16  # bits of an fp32 that one histogram counts

Prune = Callable[[Matrix, float, int, int], None]
Join = Callable[[Sequence[Matrix], Sequence[float], Given], None]


# --- on the factors ---------------------------------------------------------------------------


def linear(deltas: Sequence[Delta], given: Given) -> Made:
    """a = Σ sgn(wᵢsᵢ)·√|wᵢsᵢ|·aᵢ, b = Σ √|wᵢsᵢ|·bᵢ"""
    return _on_sides(deltas, given, None, _add)


def ties(deltas: Sequence[Delta], given: Given) -> Made:
    return _on_sides(deltas, given, _keep_largest, _elect)


def dare_linear(deltas: Sequence[Delta], given: Given) -> Made:
    return _on_sides(deltas, given, _keep_some, _add)


def dare_ties(deltas: Sequence[Delta], given: Given) -> Made:
    return _on_sides(deltas, given, _keep_some, _elect)


def magnitude_prune(deltas: Sequence[Delta], given: Given) -> Made:
    return _on_sides(deltas, given, _keep_largest, _add)


def _on_sides(deltas: Sequence[Delta], given: Given, prune: Prune | None, join: Join) -> Made:
    weights = [delta.weight * delta.scale for delta in deltas]
    roots = [math.sqrt(abs(weight)) for weight in weights]
    signed = [math.copysign(root, weight) for root, weight in zip(roots, weights, strict=True)]
    a = _joined([one.factors.a.copy() for one in deltas], signed, given, prune, join, 0)
    b = _joined([one.factors.b.copy() for one in deltas], roots, given, prune, join, 1)
    return Made(Factors(b, a))


# --- on the deltas ----------------------------------------------------------------------------


def ties_svd(deltas: list[Matrix], weights: Sequence[float], given: Given) -> Matrix:
    return _joined(deltas, weights, given, _keep_largest, _elect, 0)


def dare_linear_svd(deltas: list[Matrix], weights: Sequence[float], given: Given) -> Matrix:
    return _joined(deltas, weights, given, _keep_some, _add, 0)


def dare_ties_svd(deltas: list[Matrix], weights: Sequence[float], given: Given) -> Matrix:
    return _joined(deltas, weights, given, _keep_some, _elect, 0)


def magnitude_prune_svd(deltas: list[Matrix], weights: Sequence[float], given: Given) -> Matrix:
    return _joined(deltas, weights, given, _keep_largest, _add, 0)


# --- PEFT's steps -----------------------------------------------------------------------------


def _joined(
    tensors: list[Matrix],
    weights: Sequence[float],
    given: Given,
    prune: Prune | None,
    join: Join,
    side: int,
) -> Matrix:
    """The result, in place of the first of `tensors` (fp32), all of which it overwrites."""
    if given.inputs == 1:
        prune, join = None, _add
    for number, tensor in enumerate(tensors):
        if prune and given.parameters["density"] < 1:
            prune(tensor, given.parameters["density"], given.seed, 2 * number + side)
    for rows in _blocks(tensors[0]):
        join([tensor[rows] for tensor in tensors], weights, given)
    return tensors[0]


def _blocks(tensor: Matrix) -> Iterator[slice]:
    rows = max(1, _BLOCK // max(1, tensor.shape[1]))
    return (slice(start, start + rows) for start in range(0, tensor.shape[0], rows))


def _add(tensors: Sequence[Matrix], weights: Sequence[float], given: Given) -> None:
    """The weighted sum, in fp64, into the first."""
    total = np.zeros(tensors[0].shape)
    for tensor, weight in zip(tensors, weights, strict=True):
        total += weight * tensor.astype(np.float64)
    tensors[0][...] = total


def _elect(tensors: Sequence[Matrix], weights: Sequence[float], given: Given) -> None:
    """The mean of the weighted elements whose own sign is that of most, into the first.

    Most by the sum of the unweighted elements ("total"), or of their signs ("frequency"); a draw
    is for plus.
    """
    by_sign = given.parameters["majority_sign_method"] == "frequency"
    votes = np.zeros(tensors[0].shape, np.float32)
    for tensor in tensors:
        votes += np.sign(tensor) if by_sign else tensor
    majority = np.where(votes >= 0, np.float32(1), np.float32(-1))
    total, count = np.zeros(votes.shape), np.zeros(votes.shape)
    for tensor, weight in zip(tensors, weights, strict=True):
        agrees = np.sign(tensor) == majority
        total += np.where(agrees, weight * tensor.astype(np.float64), 0.0)
        count += agrees
    tensors[0][...] = total / np.maximum(count, 1.0)


def _keep_largest(tensor: Matrix, density: float, seed: int, stream: int) -> None:
    """Zeros but for the ⌊density · size⌋ largest; of equal ones the first are kept."""
    count = int(density * tensor.size)
    if count == 0:
        tensor[...] = 0
        return
    least, equals = _least_of_largest(tensor, count)
    for rows in _blocks(tensor):
        bits = _bits(tensor[rows])
        equal = bits == least
        within = np.cumsum(equal, axis=None).reshape(equal.shape) <= equals
        equals -= min(equals, int(equal.sum()))
        tensor[rows][~((bits > least) | (equal & within))] = 0


def _keep_some(tensor: Matrix, density: float, seed: int, stream: int) -> None:
    """Each element stays with the probability `density`, and is divided by it.

    By the raw bits of a counter-based generator, the same on every machine.
    """
    draw = np.random.Philox(key=seed, counter=(stream + 1) << 192)
    below = np.uint64(density * 2.0**64)
    for rows in _blocks(tensor):
        block = tensor[rows]
        block[draw.random_raw(block.size).reshape(block.shape) >= below] = 0
        block /= np.float32(density)


def _bits(values: Matrix) -> Matrix:
    """|x| of fp32 as whole numbers, which are in the same order."""
    return np.ascontiguousarray(values, np.float32).view(np.uint32) & np.uint32(0x7FFFFFFF)


def _least_of_largest(tensor: Matrix, count: int) -> tuple[int, int]:
    """The bits of the least of the `count` largest, and how many equal to it are among them.

    By two histograms, of the upper and of the lower half of the bits: nothing is sorted or copied.
    """
    upper, left = _bin_of(_histogram(tensor, None), count)
    lower, left = _bin_of(_histogram(tensor, upper), left)
    return upper << _HALF | lower, left


def _histogram(tensor: Matrix, upper: int | None) -> Matrix:
    """Counts of the upper halves, or of the lower halves of those with this upper one."""
    found = np.zeros(1 << _HALF, np.int64)
    for rows in _blocks(tensor):
        bits = _bits(tensor[rows]).reshape(-1)
        high = bits >> np.uint32(_HALF)
        halves = high if upper is None else bits[high == upper] & np.uint32(0xFFFF)
        found += np.bincount(halves, minlength=1 << _HALF)
    return found


def _bin_of(histogram: Matrix, count: int) -> tuple[int, int]:
    """The bin in which the `count`-th from above lies, and which one of that bin it is."""
    from_above = np.cumsum(histogram[::-1])
    place = int(np.searchsorted(from_above, count))
    before = int(from_above[place - 1]) if place else 0
    return len(histogram) - 1 - place, count - before
