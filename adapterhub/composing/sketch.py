"""The first singular vectors of a dense matrix, without decomposing the whole of it.

Halko, Martinsson, Tropp, https://arxiv.org/abs/0909.4061, algorithms 4.4 and 5.1: a random block is
multiplied by Δ and Δᵀ in turn, orthonormalised in between, until it catches no more of the energy;
Δ seen from that subspace is small enough for an exact decomposition. The products are in fp32; the
last basis and what Δ is in it are in fp64.
"""

from __future__ import annotations

import math

import numpy as np

from adapterhub.composing.blocks import finite_energy
from adapterhub.composing.factored import Cut, Matrix, Svd, rank_for
from adapterhub.composing.stopping import check

OVERSAMPLING = 10
FIRST = 32  # the block's width where only an energy is asked for
ITERATIONS = 6  # at most
SETTLED = 3e-3  # a gain below this share of what is not caught yet ends them
LAPACK = 512  # sides up to this are decomposed as they are
_BLOCK = 1 << 21  # elements that are converted to fp64 at a time


def truncated(
    delta: Matrix, rank: int | None, energy: float | None, seed: int = 0
) -> tuple[Svd, Cut]:
    """The truncation of `delta` (out, in), fp32, to a rank, or to a share of its energy, or both.

    By a random subspace (`seed` picks it), for an energy alone by one that is doubled until it
    holds that share; exact where it would be no longer small against the matrix. The residual is
    within 2 % of the best one of that rank, or 2·10⁻⁷ of the whole, which is rounding of fp32.
    Raises NotMergeable for values that are not finite.
    """
    total = finite_energy(delta)
    found = _leading(delta, rank, energy, total, seed) if total else _zeros(delta)
    kept = rank_for(found.s, rank, energy, total)
    return found.first(kept), Cut(kept, float(np.square(found.s[:kept]).sum()), total)


def _zeros(delta: Matrix) -> Svd:
    out, into = delta.shape
    return Svd(np.zeros((out, 1)), np.zeros(1), np.zeros((1, into)))


def _leading(delta: Matrix, rank: int | None, energy: float | None, total: float, seed: int) -> Svd:
    """At least as many singular vectors as are kept."""
    small = min(delta.shape)
    width = (FIRST if rank is None else rank) + OVERSAMPLING
    if rank is None and energy is None:
        width = small
    start = np.zeros((delta.shape[1], 0), np.float32)
    while 4 * width < small:
        found = _sketched(delta, width, total, seed, start)
        if rank is not None or rank_for(found.s, rank, energy, total) + OVERSAMPLING <= width:
            return found
        width, start = 2 * width, found.vt.T.astype(np.float32)
    return _lapack(delta) if small <= LAPACK else _eigen(delta)


def _sketched(delta: Matrix, width: int, total: float, seed: int, start: Matrix) -> Svd:
    """`start`: what the first columns of the block are, (in, fewer than width)."""
    # what meets Δ is divided by about its norm, so that nothing over- or underflows in fp32
    size = np.float32(2.0 ** max(-100, min(100, -round(math.log2(total) / 2))))
    draw = np.random.Generator(np.random.Philox(key=seed))
    block = draw.standard_normal((delta.shape[1], width), dtype=np.float32)
    block[:, : start.shape[1]] = start
    q, _ = np.linalg.qr(delta @ (size * block))
    caught, all_of_it = 0.0, total * float(size) ** 2
    for _ in range(ITERATIONS):
        check()
        back = delta.T @ (size * q)
        before, caught = caught, float(np.square(back, dtype=np.float64).sum())
        if caught - before <= SETTLED * (all_of_it - caught):
            break
        p, _ = np.linalg.qr(back)
        q, _ = np.linalg.qr(delta @ (size * p))
    q, _ = np.linalg.qr(q.astype(np.float64))
    u, s, vt = np.linalg.svd(_seen_from(q, delta), full_matrices=False)
    return Svd(q @ u, s, vt)


def _seen_from(q: Matrix, delta: Matrix) -> Matrix:
    """qᵀ·Δ in fp64. q: (out, k)."""
    made = np.zeros((q.shape[1], delta.shape[1]))
    step = max(1, _BLOCK // delta.shape[1])
    for start in range(0, delta.shape[0], step):
        check()
        rows = slice(start, start + step)
        made += q[rows].T @ delta[rows].astype(np.float64)
    return made


def _lapack(delta: Matrix) -> Svd:
    u, s, vt = np.linalg.svd(delta.astype(np.float64), full_matrices=False)
    return Svd(u, s, vt)


def _eigen(delta: Matrix) -> Svd:
    """From the eigenvectors of Δ·Δᵀ in fp64, or of Δᵀ·Δ, the smaller.

    Singular values below 10⁻⁸ of the first, which fp32 does not carry either, are not exact.
    """
    if delta.shape[0] > delta.shape[1]:
        flipped = _eigen(delta.T)
        return Svd(flipped.vt.T, flipped.s, flipped.u.T)
    side, length = delta.shape
    gram, step = np.zeros((side, side)), max(1, 2 * _BLOCK // side)
    for start in range(0, length, step):
        check()
        part = delta[:, start : start + step].astype(np.float64)
        gram += part @ part.T
    u = np.linalg.eigh(gram)[1][:, ::-1]
    rows = _seen_from(u, delta)
    s = np.sqrt(np.square(rows).sum(1))
    order = np.argsort(-s, kind="stable")
    rows /= np.where(s > 0, s, 1.0)[:, None]
    return Svd(u[:, order], s[order], rows[order])
