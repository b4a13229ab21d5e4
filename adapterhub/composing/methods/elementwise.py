"""Methods that look at single elements of the deltas: which remain, which signs, how they add up.

Δᵢ is what input i adds, scale and all, wᵢ its weight, of any sign; n the elements of the matrix.
`density` is the share of elements that remain, `lambda` a factor of the result, both 1 by default,
names and defaults being mergekit's. An input that leaves the matrix alone counts as zeros: it has
no sign and no vote, its weight counts only where weights are normalized in a sum. A row of Δᵢ holds
the weights into one output; of an embedding, one dimension of all tokens; of a Conv1D, as it would
of a Linear. All methods write over the deltas that they are given and hold nothing else of their
size.

What differs from mergekit, whose deltas are of whole models, in their dtype:
- with `normalize`, elected signs divide by Σ|wᵢ|, so that a negative weight takes away what it
  should (mergekit's Σwᵢ turns it round; for weights ≥ 0 they are equal); weights that add up to 0
  are refused where a sum is to be divided by them (mergekit leaves it undivided);
- `rescale` after dropping by chance divides by the probability, as the papers do, which keeps the
  expectation (mergekit's newer versions restore Σ|x|);
- at least one element remains (but for sce), of equal ones the first, and with a gamma that is none
  all that are left by the density (of which mergekit's breadcrumbs keeps nothing);
- sce's shares hang on no size (mergekit makes them equal where mean squares add up to less than
  10⁻⁶, as those of many LoRAs do);
- rows are those above, also for embeddings and Conv1D (mergekit's are those of the file).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from adapterhub.composing import blocks
from adapterhub.composing.factored import Matrix
from adapterhub.composing.inputs import cancels
from adapterhub.composing.methods import masks
from adapterhub.composing.methods.elections import elected, weighted
from adapterhub.composing.methods.row import Given
from adapterhub.errors import InvalidOption


def ties(deltas: list[Matrix], weights: Sequence[float], given: Given) -> Matrix:
    """TIES-Merging: trim, elect sign, merge. https://arxiv.org/abs/2306.01708

    δᵢ = Δᵢ where |Δᵢ| is among its ⌊density·n⌋ largest, else 0 (`rescale`: then δᵢ times
    Σ|Δᵢ| / Σ|δᵢ|). s = sign(Σ wᵢ·δᵢ), + for 0 (`majority_sign_method` "total"), or of
    Σ sign(wᵢ·δᵢ) ("frequency"). With A = {i: sign(wᵢ·δᵢ) = s}:
    lambda · Σ_A wᵢ·δᵢ / Σ_A |wᵢ|, without `normalize` not divided.

    As in mergekit and PEFT each matrix is trimmed by itself (the paper: a model's vector at once),
    and a draw is + (the paper: nobody is elected), so that A with -A is |A|.
    """
    wanted = given.parameters
    for delta in deltas:
        masks.keep_largest(delta, wanted["density"], rescale=wanted["rescale"])
    return _elected(deltas, weights, given, wanted["lambda"])


def magnitude_prune(deltas: list[Matrix], weights: Sequence[float], given: Given) -> Matrix:
    """lambda · Σ wᵢ·δᵢ, where δᵢ keeps the ⌊density·n⌋ largest |Δᵢ|: TIES' trimming alone."""
    for delta in deltas:
        masks.keep_largest(delta, given.parameters["density"])
    return weighted(deltas, weights, given.parameters["lambda"])


def dare_linear(deltas: list[Matrix], weights: Sequence[float], given: Given) -> Matrix:
    """DARE, drop and rescale. https://arxiv.org/abs/2311.03099

    δᵢ = mᵢ∘Δᵢ / density, each element of mᵢ 1 with probability density, else 0, by the seed and the
    input's place; without `rescale` not divided. lambda · Σ wᵢ·δᵢ, with `normalize` divided by Σwᵢ
    over all inputs.
    """
    factor = given.parameters["lambda"] * _dare(deltas, given)
    return weighted(deltas, weights, factor / _divisor(weights, given))


def dare_ties(deltas: list[Matrix], weights: Sequence[float], given: Given) -> Matrix:
    """DARE with TIES' signs. https://arxiv.org/abs/2311.03099

    δᵢ as in `dare_linear`, merged by the signs that are elected as in `ties`.
    """
    factor = given.parameters["lambda"] * _dare(deltas, given)
    return _elected(deltas, weights, given, factor)


def della(deltas: list[Matrix], weights: Sequence[float], given: Given) -> Matrix:
    """DELLA-Merging: drop by magnitude and chance, elect, fuse. https://arxiv.org/abs/2406.11617

    In each row of Δᵢ (c elements) the one of rank r = 0 … c-1 by ascending magnitude remains with
    probability p_r = density - epsilon + 2·epsilon·r/(c-1), divided by p_r with `rescale`; merged
    by elected signs as in `ties`. epsilon is half the range of the probabilities, as in mergekit;
    the paper's is all of it. A density of 1 drops nothing.
    """
    wanted = given.parameters
    for number, delta in zip(_numbers(deltas, given), deltas, strict=True):
        masks.drop_by_rank(
            delta, wanted["density"], wanted["epsilon"], wanted["rescale"], given.seed, number
        )
    return _elected(deltas, weights, given, wanted["lambda"])


def breadcrumbs(deltas: list[Matrix], weights: Sequence[float], given: Given) -> Matrix:
    """Model Breadcrumbs: neither the largest nor the small. https://arxiv.org/abs/2312.06795

    δᵢ keeps ⌊density·n⌋ elements of Δᵢ, the largest but for the ⌊gamma·n⌋ largest of all (fewer
    where too few would remain: density 1 keeps everything); the paper's β is 1 - density - gamma.
    `rescale`: δᵢ times Σ|Δᵢ| / Σ|δᵢ|. lambda · Σ wᵢ·δᵢ, with `normalize` divided by Σwᵢ over all
    inputs.
    """
    wanted = given.parameters
    for delta in deltas:
        masks.drop_outliers(delta, wanted["density"], wanted["gamma"], rescale=wanted["rescale"])
    return weighted(deltas, weights, wanted["lambda"] / _divisor(weights, given))


def sce(deltas: list[Matrix], weights: Sequence[float], given: Given) -> Matrix:
    """Select, calculate, erase (FuseChat). https://arxiv.org/abs/2408.07990

    With δᵢ = wᵢ·Δᵢ of all inputs, zeros included: where select_topk < 1, only the elements with
    the ⌊select_topk·m⌋ largest variances over the inputs remain, in all of them, m being how many
    variances are not 0. cᵢ = Σδᵢ² / Σⱼ Σδⱼ². s = sign(Σ δᵢ), + for 0; with A = {i: sign(δᵢ) = s}:
    Σ_A cᵢ·δᵢ / Σ_A cᵢ. Neither the paper nor mergekit has weights: with all at 1 it is the paper's.
    """
    for delta, weight in zip(deltas, weights, strict=True):
        blocks.scale(delta, weight)
    if given.parameters["select_topk"] < 1:
        _select(deltas, given)
    energies = [blocks.finite_energy(delta) for delta in deltas]
    shares = [energy / (sum(energies) or 1.0) for energy in energies]
    return elected(deltas, shares, votes=[1.0] * len(deltas))


def check_della(settings: Mapping[str, Any], weights: Sequence[float]) -> None:
    """Raises InvalidOption where a probability would not be between 0 and 1."""
    density, epsilon = settings["density"], settings["epsilon"]
    if density < 1 and not (density - epsilon > 0 and density + epsilon < 1):
        raise InvalidOption(
            f"epsilon is {epsilon:g} around a density of {density:g}: elements would remain with "
            f"probabilities from {density - epsilon:g} to {density + epsilon:g}",
            remedy=f"epsilon: below {min(density, 1 - density):g}, or another density",
        )


def check_normalized(settings: Mapping[str, Any], weights: Sequence[float]) -> None:
    """Raises InvalidOption where weights are to be divided by a sum of 0, or one that overflows."""
    if not settings["normalize"]:
        return
    remedy = "give other weights, or normalize=false"
    if not math.isfinite(sum(weights)):
        raise InvalidOption("the weights are too large to be added up", remedy=remedy)
    if cancels(weights):
        raise InvalidOption("the weights add up to 0 and cannot be normalized", remedy=remedy)


def _numbers(deltas: Sequence[Matrix], given: Given) -> Sequence[int]:
    return given.numbers or range(len(deltas))


def _dare(deltas: Sequence[Matrix], given: Given) -> float:
    """Drops in place; what the rest is multiplied by."""
    density = given.parameters["density"]
    for number, delta in zip(_numbers(deltas, given), deltas, strict=True):
        masks.drop_at_random(delta, density, given.seed, number)
    return 1 / density if given.parameters["rescale"] else 1.0


def _divisor(weights: Sequence[float], given: Given) -> float:
    return sum(given.weights or weights) if given.parameters["normalize"] else 1.0


def _elected(
    deltas: Sequence[Matrix], weights: Sequence[float], given: Given, factor: float
) -> Matrix:
    wanted = given.parameters
    return elected(
        deltas,
        weights,
        by=wanted["majority_sign_method"],
        normalize=wanted["normalize"],
        factor=factor,
    )


def _select(deltas: Sequence[Matrix], given: Given) -> None:
    """SCE's selection, in place. Deviations instead of variances: the same order, no underflow."""
    shape = given.shape

    def spread(rows: slice) -> Matrix:
        mean, squares = np.zeros(deltas[0][rows].shape), np.zeros(deltas[0][rows].shape)
        for delta in deltas:
            mean += delta[rows]
        mean /= given.inputs
        for delta in deltas:
            squares += np.square(delta[rows] - mean)
        squares += (given.inputs - len(deltas)) * np.square(mean)
        return np.sqrt(squares / given.inputs).astype(np.float32)

    differ = int(blocks.total(shape, lambda rows: int(np.count_nonzero(spread(rows)))))
    count = int(given.parameters["select_topk"] * differ)
    chosen = masks.largest(shape, spread, count)

    def work(rows: slice) -> None:
        dropped = ~chosen.mask(rows, spread(rows))
        for delta in deltas:
            np.copyto(delta[rows], 0, where=dropped)

    blocks.each(shape, work)
