"""Methods that look at deltas in a subspace that they share, on the factors alone.

A delta of LoRA has few directions, and so do n of them together: every decomposition here is of a
matrix whose sides are ranks, after QR of the factors. All in fp64. How a user's weights count:

- KnOTS: the basis is that of the deltas as they are; wᵢ scales what a delta is in that basis,
  before signs are elected, so that a negative weight votes and adds the other way.
- TSV-merge: wᵢ scales the singular values of its delta, after the choice of which are kept.
- Iso-C: wᵢ scales the delta in the sum. With one weight c for all, the result is c times that of
  weights of 1, as with the papers' one factor α.

A delta of zeros, or of weight 0, counts as absent: neither takes a share of anything. Biases of
lora_B have no directions: KnOTS refuses them, with the others they add up by the weights (the
authors' code takes the mean of vectors).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from adapterhub.composing.factored import Factors, Matrix, stacked, svd
from adapterhub.composing.methods.row import Delta, Given, Made
from adapterhub.errors import NotMergeable

# Files have fp32: what is smaller than this share of the largest singular value, or of the size of
# the factors in fp64, is their rounding and no direction of its own.
ROUNDING, NOTHING = 2.0**-20, 2.0**-44
NOISE = 2.0**-40  # an element that small against the largest singular value is 0 but for rounding
DRAW = 2.0**-30  # a sum that small against its terms is 0 but for rounding: it elects no sign


def knots_ties(deltas: Sequence[Delta], given: Given) -> Made:
    """KnOTS with TIES, https://arxiv.org/abs/2410.19735 and https://arxiv.org/abs/2306.01708.

    [Δ₁ … Δₙ] = U·Σ·[V₁ᵀ … Vₙᵀ]; of each Σ·Vᵢᵀ (k × in) the largest elements stay, a share
    `density` of them; for each element the sign of Σᵢ wᵢ·xᵢ is elected, and the mean of those
    wᵢ·xᵢ that have it is taken; U times that is the result.

    As in the authors' own runs (`s_on_V`), Σ stands on the side of V, where large directions count
    as large. Trimmed is each matrix by itself, not all of a model in one; a draw elects nobody
    (in the authors' code the sign of most elements), and who is 0 but for rounding has no voice.
    """
    shared = _shared(deltas)
    if shared is None:
        return _nothing(given)
    density = given.parameters["density"]
    return shared.back(_elected([_largest(part, density) for part in shared.weighted]))


def knots_dare(deltas: Sequence[Delta], given: Given) -> Made:
    """KnOTS with DARE-TIES, https://arxiv.org/abs/2410.19735 and https://arxiv.org/abs/2311.03099.

    As `knots_ties`, but which elements of Σ·Vᵢᵀ stay is chance: each with the probability
    `density`, and is divided by it. The chance of input i hangs on the seed and i alone.
    """
    shared = _shared(deltas)
    if shared is None:
        return _nothing(given)
    density = given.parameters["density"]
    kept = [
        part * _drawn(part.shape, density, given.seed, number) / density
        for part, number in zip(shared.weighted, shared.numbers, strict=True)
    ]
    return shared.back(_elected(kept))


def tsv(deltas: Sequence[Delta], given: Given) -> Made:
    """Task singular vectors, merged: https://arxiv.org/abs/2412.00081, algorithm 1.

    Of each Δᵢ = Uᵢ·Σᵢ·Vᵢᵀ the first ⌊`share` · rankᵢ⌋ singular values stay, at least one; without
    `share` it is 1/n, n the deltas there are. U = [U₁ … Uₙ] and V likewise are replaced by the
    nearest matrices with orthonormal columns, and U⊥·diag(w₁Σ₁ … wₙΣₙ)·V⊥ᵀ is the result.

    The paper's rank is min(out, in), and 1/n of it makes room for n tasks; low-rank deltas are
    measured by their own rank. Where columns of U depend on each other, the nearest matrix is not
    unique: taken is the one that adds no direction of its own (the factor of the polar
    decomposition with the kernel of U), so that A with A is A's share, and A with -A nothing.
    """
    found = [(weight, svd(factors)) for weight, factors in _present(deltas)]
    ranks = [_rank(each.s) for _, each in found]
    if not found:
        return _nothing(given)
    share = given.parameters["share"] or 1 / len(found)
    # a share of 1/n of a multiple of n is whole, but for rounding
    keeps = [max(1, int(share * rank + 1e-9)) for rank in ranks]
    kept = [(weight, one.first(keep)) for (weight, one), keep in zip(found, keeps, strict=True)]
    u = _whitened(np.concatenate([one.u for _, one in kept], axis=1))
    v = _whitened(np.concatenate([one.vt.T for _, one in kept], axis=1))
    values = np.concatenate([weight * one.s for weight, one in kept])
    root = np.sqrt(np.abs(values))
    return Made(Factors(u * root, (np.sign(values) * root)[:, None] * v.T))


def iso_c(deltas: Sequence[Delta], given: Given) -> Made:
    """Isotropic merging in the common subspace: https://arxiv.org/abs/2502.04959, algorithm 1.

    Σᵢ wᵢ·Δᵢ = U·Σ·Vᵀ; all its singular values are replaced by their mean: σ̄·U·Vᵀ.

    The paper's mean runs over min(out, in) values, all of them above 0 in a full fine-tuning. A sum
    of low-rank deltas has exact zeros, whose singular vectors are arbitrary: they get nothing, and
    are not counted, so that the mean runs over the rank. With them, σ̄ would shrink by
    rank / min(out, in), and be spread over directions that no adapter ever learned. Either way the
    sum of the singular values stays what it was, as in the paper.
    """
    terms = [Factors(weight * one.b, one.a) for weight, one in _present(deltas)]
    if not terms:
        return _nothing(given)
    found = svd(stacked(terms))
    rank = _rank(found.s, sum(_size(term) for term in terms))
    if not rank:
        return _nothing(given)
    kept = found.first(rank)
    root = np.sqrt(kept.s.sum() / rank)
    return Made(Factors(root * kept.u, root * kept.vt))


# --- what they share --------------------------------------------------------------------------


def _present(deltas: Sequence[Delta]) -> list[tuple[float, Factors]]:
    """Weight and Δ in fp64 of what counts."""
    return [(one.weight, one.double()) for one in deltas if one.weight and not _is_zero(one)]


def _is_zero(delta: Delta) -> bool:
    both = delta.double()
    r = np.linalg.qr(both.b, mode="r")
    return bool(np.abs(r @ both.a).max() <= NOTHING * _size(both))


def _nothing(given: Given) -> Made:
    out, into = given.shape
    return Made(Factors(np.zeros((out, 1)), np.zeros((1, into))))


def _size(delta: Factors) -> float:
    """‖b‖·‖a‖ in the Frobenius norm: at least ‖Δ‖, and the measure of its rounding."""
    return float(np.linalg.norm(delta.b) * np.linalg.norm(delta.a))


def _rank(s: Matrix, size: float = 0.0) -> int:
    if not np.isfinite(size):  # or everything would count as nothing
        raise NotMergeable("a delta becomes infinite or NaN", remedy="give smaller weights")
    return int((s > max(ROUNDING * s[0], NOTHING * size)).sum())


def _whitened(columns: Matrix) -> Matrix:
    """The nearest matrix with orthonormal columns, over the directions that there are."""
    x, values, yt = np.linalg.svd(columns, full_matrices=False)
    rank = _rank(values)
    whitened: Matrix = x[:, :rank] @ yt[:rank]
    return whitened


@dataclass(frozen=True, eq=False)
class _Shared:
    """[Δ₁ … Δₙ] = u·diag(s)·[V₁ᵀ … Vₙᵀ].

    u: (out, k), s: (k,), `weighted`: wᵢ·diag(s)·Vᵢᵀ (k, in) of each, `numbers`: of its input.
    """

    u: Matrix
    s: Matrix
    weighted: list[Matrix]
    numbers: list[int]

    def back(self, merged: Matrix) -> Made:
        root = np.sqrt(self.s)
        return Made(Factors(self.u * root, merged / root[:, None]))


def _shared(deltas: Sequence[Delta]) -> _Shared | None:
    """The SVD of the deltas side by side, or None where there are none.

    b = [b₁ … bₙ] = Q·[R₁ … Rₙ] and aᵢᵀ = Pᵢ·Sᵢ, so that [Δ₁ … Δₙ] = Q·[R₁S₁ᵀ … RₙSₙᵀ]·diag(Pᵢᵀ):
    only the matrix in the middle, ranks × ranks, is decomposed.
    """
    present = [one for one in deltas if one.weight and not _is_zero(one)]
    if not present:
        return None
    both = [one.double() for one in present]
    q, r = np.linalg.qr(np.concatenate([one.b for one in both], axis=1))
    sides = [np.linalg.qr(one.a.T) for one in both]
    blocks = np.split(r, np.cumsum([one.rank for one in both])[:-1], axis=1)
    middles = [block @ side.T for block, (_, side) in zip(blocks, sides, strict=True)]
    u, s, vt = np.linalg.svd(np.concatenate(middles, axis=1), full_matrices=False)
    rank = _rank(s)
    ends = np.cumsum([middle.shape[1] for middle in middles])[:-1]
    parts = np.split(s[:rank, None] * vt[:rank], ends, axis=1)
    weighted = []
    for one, part, (p, _) in zip(present, parts, sides, strict=True):
        seen = part @ p.T
        seen[np.abs(seen) <= NOISE * s[0]] = 0  # where it adds nothing, it has no voice in a mean
        weighted.append(one.weight * seen)
    return _Shared(q @ u[:, :rank], s[:rank], weighted, [one.number for one in present])


def _largest(values: Matrix, density: float) -> Matrix:
    """`values` with zeros where they are not of the largest; equals of the least one kept stay."""
    count = max(1, int(density * values.size))
    sizes = np.abs(values)
    least = np.partition(sizes, values.size - count, axis=None)[values.size - count]
    return np.where(sizes >= least, values, 0.0)


def _drawn(shape: tuple[int, ...], density: float, seed: int, number: int) -> Matrix:
    """True with the probability `density`, by the raw bits of Philox; one stream per input."""
    if density >= 1:
        return np.ones(shape, bool)
    bits = np.random.Philox(key=seed, counter=(number + 1) << 192).random_raw(int(np.prod(shape)))
    return (bits < np.uint64(density * 2.0**64)).reshape(shape)


def _elected(parts: Sequence[Matrix]) -> Matrix:
    """For each element the mean of those that have the sign of the sum; 0 where nobody has."""
    total, sizes = np.zeros_like(parts[0]), np.zeros_like(parts[0])
    for part in parts:
        total += part
        sizes += np.abs(part)
    sign = np.where(np.abs(total) <= DRAW * sizes, 0.0, np.sign(total))
    merged, count = np.zeros_like(total), np.zeros_like(total)
    for part in parts:
        agrees = part * sign > 0
        merged += np.where(agrees, part, 0.0)
        count += agrees
    merged /= np.maximum(count, 1.0)
    return merged
