"""Linear algebra on a delta that is known by its factors, Δ = b·a, without ever forming it.

With b = Q·R and aᵀ = P·S (QR, r columns each), Δ = Q·(R·Sᵀ)·Pᵀ, and so the singular values of Δ are
those of the r × r matrix R·Sᵀ (Golub & Van Loan, Matrix Computations, 4th ed., §8.6). All in fp64:
for factors of fp32 the errors stay far below their own rounding.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from adapterhub.errors import InvalidOption, NotMergeable

Matrix = np.ndarray[Any, np.dtype[Any]]
MAX_RANK = 1 << 31  # more than any side of a matrix has
_CONDITION = 1e-4  # of Cholesky's diagonal, and how far from orthonormal its first result may be


@dataclass(frozen=True, eq=False)
class Factors:
    """Δ = b·a. b: (out, rank), a: (rank, in), both fp32 or both fp64."""

    b: Matrix
    a: Matrix

    @property
    def rank(self) -> int:
        return int(self.a.shape[0])

    @property
    def shape(self) -> tuple[int, int]:
        return int(self.b.shape[0]), int(self.a.shape[1])

    def double(self) -> Factors:
        return Factors(self.b.astype(np.float64), self.a.astype(np.float64))

    def single(self) -> Factors:
        return Factors(self.b.astype(np.float32), self.a.astype(np.float32))


@dataclass(frozen=True, eq=False)
class Svd:
    """Δ = u · diag(s) · vt. u: (out, k), s: (k,) descending, vt: (k, in), fp64."""

    u: Matrix
    s: Matrix
    vt: Matrix

    def first(self, rank: int) -> Svd:
        return Svd(self.u[:, :rank], self.s[:rank], self.vt[:rank])

    def factors(self) -> Factors:
        """b = u·√s and a = √s·vt, so that neither is much larger than the other."""
        root = np.sqrt(self.s)
        return Factors(self.u * root, root[:, None] * self.vt)


@dataclass(frozen=True)
class Cut:
    """What a truncation kept: `rank` singular values of `energy` (Σs²) out of `total`."""

    rank: int
    energy: float
    total: float

    @property
    def error(self) -> float:
        """‖Δ − kept‖ / ‖Δ‖ in the Frobenius norm; 0 for a delta of zeros."""
        if self.total <= 0:
            return 0.0
        return float(np.sqrt(max(0.0, self.total - self.energy) / self.total))


def stacked(terms: Sequence[Factors]) -> Factors:
    """The sum of deltas of one shape, as one: the ranks add up."""
    return Factors(
        np.concatenate([term.b for term in terms], axis=1),
        np.concatenate([term.a for term in terms], axis=0),
    )


def inner(one: Factors, other: Factors) -> float:
    """⟨Δ₁, Δ₂⟩ = Σ (b₁ᵀ·b₂) ∘ (a₁·a₂ᵀ), in fp64."""
    return float(((one.b.T @ other.b) * (one.a @ other.a.T)).sum())


def norm(delta: Factors) -> float:
    """‖Δ‖ in the Frobenius norm."""
    return float(np.sqrt(max(0.0, inner(delta, delta))))


def svd(delta: Factors) -> Svd:
    """The singular value decomposition, min(rank, out, in) values; zeros included.

    Raises NotMergeable for values that are NaN or infinite.
    """
    b, a = delta.b.astype(np.float64), delta.a.astype(np.float64).T
    q, to_q, r = _orthonormal(b)
    p, to_p, s = _orthonormal(a)
    core = r @ s.T
    if not np.isfinite(core).all():
        raise NotMergeable("a delta becomes infinite or NaN", remedy="give smaller weights")
    u, values, vt = np.linalg.svd(core, full_matrices=False)
    return Svd(q @ (to_q @ u), values, (vt @ to_p.T) @ p.T)


def _orthonormal(x: Matrix) -> tuple[Matrix, Matrix, Matrix]:
    """(y, w, r) with y·w orthonormal and y·w·r = x, for x with more rows than columns or fewer.

    Cholesky's factor of xᵀ·x, twice, is r to fp64's precision as long as x is well conditioned
    (CholeskyQR2: Yamamoto et al., https://doi.org/10.1553/etna_vol44s306), in a tenth of the time
    of Householder's QR, which does the rest.
    """
    found = _cholesky_twice(x)
    if found is not None:
        return x, *found
    q, r = np.linalg.qr(x)
    return q, np.eye(r.shape[0]), r


def _cholesky_twice(x: Matrix) -> tuple[Matrix, Matrix] | None:
    """(w, r), or None where x is not well conditioned."""
    if x.shape[0] < x.shape[1]:
        return None
    gram = x.T @ x
    try:
        first = np.linalg.cholesky(gram).T
        diagonal = np.diagonal(first)
        if not diagonal.min() > _CONDITION * diagonal.max():
            return None
        once = np.linalg.inv(first)
        y = x @ once
        again = y.T @ y
        if not np.abs(again - np.eye(len(again))).max() < _CONDITION:
            return None
        second = np.linalg.cholesky(again).T
    except np.linalg.LinAlgError:
        return None
    return once @ np.linalg.inv(second), second @ first


def check_rank(rank: int | None) -> None:
    """Raises InvalidOption."""
    if rank is None:
        return
    if not isinstance(rank, int) or isinstance(rank, bool) or not 1 <= rank <= MAX_RANK:
        said = str(rank) if abs(rank) <= MAX_RANK else "larger than 2³¹"
        raise InvalidOption(f"rank {said}", remedy="a rank is a whole number, 1 or more")


def rank_for(s: Matrix, rank: int | None, energy: float | None, total: float | None = None) -> int:
    """How many of the singular values `s` to keep, at least one.

    `rank`: at most so many. `energy`: the fewest whose Σs² is that share of `total`, by default of
    all of `s`. Raises InvalidOption for what is out of range.
    """
    check_rank(rank)
    if energy is not None and not 0 < energy <= 1:
        raise InvalidOption(f"energy {energy}", remedy="a share of the energy is in (0, 1]")
    kept = len(s) if rank is None else min(rank, len(s))
    if energy is not None:
        sums = np.cumsum(np.square(s))
        wanted = energy * (sums[-1] if total is None else total)
        # a share of 1 is reached but for rounding
        enough = int(np.searchsorted(sums, wanted * (1 - 1e-12))) + 1
        kept = min(kept, enough)
    return max(1, kept)


def cut(found: Svd, rank: int | None, energy: float | None) -> tuple[Svd, Cut]:
    """The first singular values, by `rank_for`, and what that keeps of the whole."""
    kept = rank_for(found.s, rank, energy)
    squares = np.square(found.s)
    return found.first(kept), Cut(kept, float(squares[:kept].sum()), float(squares.sum()))
