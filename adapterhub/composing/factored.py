"""Linear algebra on a delta that is known by its factors, Δ = b·a, without ever forming it.

With b = Q·R and aᵀ = P·S (QR, r columns each), Δ = Q·(R·Sᵀ)·Pᵀ, and so the singular values of Δ are
those of the r × r matrix R·Sᵀ (Golub & Van Loan, Matrix Computations, 4th ed., §8.6). All in fp64:
for factors of fp32 the errors stay far below their own rounding.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from adapterhub.errors import InvalidOption, NotMergeable

Matrix = np.ndarray[Any, np.dtype[Any]]
MAX_RANK = 1 << 31  # more than any side of a matrix has
DIVERGED = "this adapter diverged in training; take an earlier checkpoint"
_ONCE, _TWICE = 1e3, 1e6  # the conditions up to which one and two of Cholesky's factors do


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
        return Factors(np.asarray(self.b, np.float64), np.asarray(self.a, np.float64))

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

    def scaled(self, scale: float) -> Cut:
        """Of scale·Δ."""
        return Cut(self.rank, scale**2 * self.energy, scale**2 * self.total)

    @property
    def error(self) -> float:
        """‖Δ − kept‖ / ‖Δ‖ in the Frobenius norm; 0 for a delta of zeros."""
        if self.total <= 0:
            return 0.0
        return float(np.sqrt(max(0.0, self.total - self.energy) / self.total))


def finite(values: Matrix, what: str) -> Matrix:
    """`values`. Raises NotMergeable where some are NaN or infinite; `what` says whose."""
    if not np.isfinite(values).all():
        raise NotMergeable(f"{what} values that are NaN or infinite", remedy=DIVERGED)
    return values


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
    q, left, s, right, p = _decomposed(delta, lambda s: len(s))
    return Svd(q @ left, s, right @ p.T)


def cut(
    delta: Factors, rank: int | None, energy: float | None, scale: float = 1.0
) -> tuple[Factors, Cut]:
    """scale·Δ by its first singular values, as many as `rank_for` says: b = u·√s, a = √s·vt, fp64;
    and what that keeps of the whole. `scale` is above 0.

    Raises NotMergeable for values that are NaN or infinite.
    """
    squares: list[Matrix] = []

    def kept(s: Matrix) -> int:
        squares.append(np.square(s))
        return rank_for(s, rank, energy)

    q, left, s, right, p = _decomposed(delta, kept)
    root = np.sqrt(scale * s)
    # The roots go into the small matrices: half of the time is the memory of large ones.
    made = Factors(q @ (left * root), (root[:, None] * right) @ p.T)
    energies = float(squares[0][: len(s)].sum()), float(squares[0].sum())
    return made, Cut(len(s), *energies).scaled(scale)


def _decomposed(
    delta: Factors, kept: Callable[[Matrix], int]
) -> tuple[Matrix, Matrix, Matrix, Matrix, Matrix]:
    """(q, left, s, right, p), where q·left is u and right·pᵀ is vt: as many as `kept` says."""
    q, to_q, r = _orthonormal(np.asarray(delta.b, np.float64))
    p, to_p, s = _orthonormal(np.asarray(delta.a, np.float64).T)
    core = r @ s.T
    if not np.isfinite(core).all():
        raise NotMergeable("a delta becomes infinite or NaN", remedy="give smaller weights")
    u, values, vt = np.linalg.svd(core, full_matrices=False)
    count = kept(values)
    return q, to_q @ u[:, :count], values[:count], vt[:count] @ to_p.T, p


def _orthonormal(x: Matrix) -> tuple[Matrix, Matrix, Matrix]:
    """(y, w, r) with y·w orthonormal and y·w·r = x, for x with more rows than columns or fewer.

    Cholesky's factor of xᵀ·x is r, as long as x is well conditioned: to about κ²·2⁻⁵³, and done
    twice to fp64's precision (CholeskyQR2: Yamamoto et al.,
    https://doi.org/10.1553/etna_vol44s306), in a tenth of the time of Householder's QR, which does
    the rest.
    """
    found = _cholesky(x)
    if found is not None:
        return x, *found
    q, r = np.linalg.qr(x)
    return q, np.eye(r.shape[0]), r


def _cholesky(x: Matrix) -> tuple[Matrix, Matrix] | None:
    """(w, r), or None where x is not well conditioned."""
    if x.shape[0] < x.shape[1]:
        return None
    try:
        r = np.linalg.cholesky(x.T @ x).T
        w = np.linalg.inv(r)
        condition = float(np.linalg.norm(r) * np.linalg.norm(w))  # not below κ
        if not condition < _ONCE:
            if not condition < _TWICE:
                return None
            y = x @ w
            again = np.linalg.cholesky(y.T @ y).T
            w, r = w @ np.linalg.inv(again), again @ r
    except np.linalg.LinAlgError:
        return None
    return w, r


def check_rank(rank: int | None) -> None:
    """Raises InvalidOption."""
    if rank is None:
        return
    if not isinstance(rank, int) or isinstance(rank, bool) or not 1 <= rank <= MAX_RANK:
        huge = isinstance(rank, int) and abs(rank) > MAX_RANK
        said = "larger than 2³¹" if huge else f"{rank!r}"
        raise InvalidOption(f"rank {said}", remedy="a rank is a whole number, 1 or more")


def check_share(name: str, value: float | None) -> None:
    """Raises InvalidOption."""
    if value is None:
        return
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if not is_number or not 0 < value <= 1:
        raise InvalidOption(f"{name} {value!r:.60}", remedy="a share is above 0, at most 1: 0.99")


def rank_for(s: Matrix, rank: int | None, energy: float | None, total: float | None = None) -> int:
    """How many of the singular values `s` to keep, at least one.

    `rank`: at most so many. `energy`: the fewest whose Σs² is that share of `total`, by default of
    all of `s`, but for 10⁻¹² of it. Raises InvalidOption for what is out of range.
    """
    check_rank(rank)
    check_share("energy", energy)
    kept = len(s) if rank is None else min(rank, len(s))
    if energy is not None:
        sums = np.cumsum(np.square(s))
        wanted = energy * (sums[-1] if total is None else total)
        # a share of 1 is reached but for rounding
        enough = int(np.searchsorted(sums, wanted * (1 - 1e-12))) + 1
        kept = min(kept, enough)
    return max(1, kept)
