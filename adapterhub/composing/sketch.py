"""The first singular vectors of a dense matrix, by randomised subspace iteration.

Halko, Martinsson, Tropp, https://arxiv.org/abs/0909.4061, algorithms 4.4 and 5.1: a random block is
multiplied by Δ and Δᵀ in turn, orthonormalised in between, until it spans the leading singular
vectors; Δ seen from that subspace is small enough for an exact decomposition.
"""

from __future__ import annotations

import numpy as np

from adapterhub.composing.factored import Cut, Matrix, Svd, rank_for

OVERSAMPLING = 10
ITERATIONS = 4


def truncated(
    delta: Matrix, rank: int | None, energy: float | None, seed: int = 0
) -> tuple[Svd, Cut]:
    """The truncation of `delta` (out, in) to a rank, or to a share of its energy, or both.

    Exact (LAPACK) where the rank is not small against the matrix. `seed` picks the random block.
    """
    total = energy_of(delta)
    small = min(delta.shape)
    if rank is None or 4 * (rank + OVERSAMPLING) >= small:
        u, s, vt = np.linalg.svd(delta.astype(np.float64), full_matrices=False)
        found = Svd(u, s, vt)
    else:
        found = _sketched(delta, rank, seed)
    kept = rank_for(found.s, rank, energy, total)
    return found.first(kept), Cut(kept, float(np.square(found.s[:kept]).sum()), total)


def energy_of(delta: Matrix) -> float:
    """Σ of the squares, in fp64, a few rows at a time."""
    rows = max(1, (1 << 20) // max(1, delta.shape[1]))
    return float(
        sum(
            np.square(delta[start : start + rows], dtype=np.float64).sum()
            for start in range(0, delta.shape[0], rows)
        )
    )


def _sketched(delta: Matrix, rank: int, seed: int) -> Svd:
    draw = np.random.Generator(np.random.Philox(key=seed))
    width = rank + OVERSAMPLING
    block = draw.standard_normal((delta.shape[1], width), dtype=np.float32)
    q, _ = np.linalg.qr(delta @ block)
    for _ in range(ITERATIONS):
        p, _ = np.linalg.qr(delta.T @ q)
        q, _ = np.linalg.qr(delta @ p)
    u, s, vt = np.linalg.svd((q.T @ delta).astype(np.float64), full_matrices=False)
    return Svd(q.astype(np.float64) @ u, s, vt)
