"""PEFT's own combinations: what `add_weighted_adapter` of peft 0.21 computes, where it is right.

Those without `_svd` work on the factors: on A with the weights sgn(wᵢsᵢ)·√|wᵢsᵢ| and on B with
√|wᵢsᵢ|, each by itself, and multiply after that. The product has terms Bᵢ·Aⱼ of different adapters:
even `peft_linear` is far from the sum, and stands here for results that PEFT gave. Those with
`_svd` work on the deltas, and are truncated to the largest rank of the adapters, or `--rank`.

TIES elects signs before the weights (https://arxiv.org/abs/2306.01708), DARE divides by the density
(https://arxiv.org/abs/2311.03099); one adapter alone is only scaled, as in PEFT. Not PEFT's: chance
is that of a seed and of an input's place; one element at least stays; rsLoRA's scale counts once,
and lora_bias is added by the weights, which PEFT gets wrong: it is refused beside elected signs,
whose mean is no sum.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np

from adapterhub.composing.blocks import each, scale
from adapterhub.composing.factored import Factors, Matrix
from adapterhub.composing.methods import masks
from adapterhub.composing.methods.row import Delta, Given, Made

Prune = Callable[[Matrix, float, int, int], None]
Join = Callable[[Sequence[Matrix], Sequence[float], Given], None]


# --- on the factors ---------------------------------------------------------------------------


def linear(deltas: Sequence[Delta], given: Given) -> Made:
    """a = Σ sgn(wᵢsᵢ)·√|wᵢsᵢ|·aᵢ, b = Σ √|wᵢsᵢ|·bᵢ"""
    return _on_sides(deltas, given, None, _add)


def ties(deltas: Sequence[Delta], given: Given) -> Made:
    """TIES (https://arxiv.org/abs/2306.01708) of all A, and of all B."""
    return _on_sides(deltas, given, _keep_largest, _elect)


def dare_linear(deltas: Sequence[Delta], given: Given) -> Made:
    """DARE (https://arxiv.org/abs/2311.03099) of each A and each B, added up."""
    return _on_sides(deltas, given, _keep_some, _add)


def dare_ties(deltas: Sequence[Delta], given: Given) -> Made:
    """DARE of each A and each B, added up by the signs that TIES elects."""
    return _on_sides(deltas, given, _keep_some, _elect)


def magnitude_prune(deltas: Sequence[Delta], given: Given) -> Made:
    """The largest elements of each A and each B, added up."""
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
    """TIES (https://arxiv.org/abs/2306.01708): the largest elements, by elected signs."""
    return _joined(deltas, weights, given, _keep_largest, _elect, 0)


def dare_linear_svd(deltas: list[Matrix], weights: Sequence[float], given: Given) -> Matrix:
    """DARE (https://arxiv.org/abs/2311.03099): some elements by chance, added up."""
    return _joined(deltas, weights, given, _keep_some, _add, 0)


def dare_ties_svd(deltas: list[Matrix], weights: Sequence[float], given: Given) -> Matrix:
    """Some elements by chance, as DARE, added up by the signs that TIES elects."""
    return _joined(deltas, weights, given, _keep_some, _elect, 0)


def magnitude_prune_svd(deltas: list[Matrix], weights: Sequence[float], given: Given) -> Matrix:
    """The largest elements, added up."""
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
    for number, tensor in zip(given.numbers or range(len(tensors)), tensors, strict=True):
        if prune and given.parameters["density"] < 1:
            prune(tensor, given.parameters["density"], given.seed, 2 * number + side)
    each(tensors[0].shape, lambda rows: join([tensor[rows] for tensor in tensors], weights, given))
    return tensors[0]


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
    """Zeros but for the ⌊density · size⌋ largest, one at least; of equal ones the first stay."""
    masks.keep_largest(tensor, density)


def _keep_some(tensor: Matrix, density: float, seed: int, stream: int) -> None:
    """Each element stays with the probability `density`, and is divided by it."""
    masks.drop_at_random(tensor, density, seed, stream)
    scale(tensor, 1 / density)
