"""The weighted sum of deltas, exact on their factors: Σ wᵢ·sᵢ·Bᵢ·Aᵢ = [… wᵢsᵢBᵢ …]·[… Aᵢ …].

The ranks add up. Only elements of B are multiplied, each rounded once to fp32, so that the result
has the same bits everywhere; where all inputs have one scale, it stays the scale of the result, and
a weight of 1 changes no bit at all. Task arithmetic (https://arxiv.org/abs/2212.04089) is this sum
with weights of either sign; an average is the sum divided by the weights of all inputs, of which
one that leaves a module alone adds zeros to it.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from adapterhub.composing.factored import Factors, Matrix
from adapterhub.composing.methods.row import Delta, Given, Made


def total(deltas: Sequence[Delta], given: Given) -> Made:
    """Σ wᵢ·sᵢ·Bᵢ·Aᵢ: b (out, Σ ranks) and a (Σ ranks, in), fp32, and one scale."""
    scale = _common(deltas)
    b: Matrix = np.empty((given.shape[0], sum(each.factors.rank for each in deltas)), np.float32)
    at = 0
    for each in deltas:
        columns = b[:, at : at + each.factors.rank]
        _weigh(each.factors.b, each.weight * each.scale / scale, columns)
        at += each.factors.rank
    return Made(Factors(b, np.concatenate([each.factors.a for each in deltas])), scale)


def _common(deltas: Sequence[Delta]) -> float:
    """The scale of all, if it is one that alpha / rank of the result gives back."""
    scales = {delta.scale for delta in deltas}
    rank = sum(delta.factors.rank for delta in deltas)
    scale = scales.pop()
    kept = not scales and scale > 0 and scale * rank / rank == scale
    return scale if kept else 1.0


def _weigh(b: Matrix, coefficient: float, out: Matrix) -> None:
    """fp64 rounded once; a coefficient of 1 leaves every bit, NaN payloads and −0 included."""
    if coefficient == 1:
        out[...] = b
    else:  # a piece after the other, so that no fp64 copy of it is made
        np.multiply(b, np.float64(coefficient), out=out, dtype=np.float64, casting="same_kind")
