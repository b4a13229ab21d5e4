"""Products and factorisations of tall, narrow matrices, block by block.

A library spreads one QR of 11008 × 32 over all cores, which wait for each other longer than they
work, the more so where several matrices are at hand at once. Blocks stay below the size from which
it does so, and in the cache.
"""

from __future__ import annotations

import numpy as np

from adapterhub.composing.factored import Factors, Matrix, Svd

_ELEMENTS = 8192  # of a block: 256 rows at rank 32


def svd(delta: Factors) -> Svd:
    """As `factored.svd`."""
    q, r = qr(delta.b)
    p, s = qr(delta.a.T)
    u, values, vt = np.linalg.svd(r @ s.T, full_matrices=False)
    return Svd(product(q, u), values, product(p, vt.T).T)


def qr(tall: Matrix) -> tuple[Matrix, Matrix]:
    """q: (rows, k) with orthonormal columns, r: (k, columns), k the smaller side; q·r is `tall`.

    The blocks' own factorisations, and one of their r's (TSQR: Demmel et al. 2012,
    https://doi.org/10.1137/080731992).
    """
    rows, columns = tall.shape
    step = _step(columns)
    if rows <= step:
        return np.linalg.qr(tall)
    whole, rest = _split(tall, step)
    q, r = np.linalg.qr(whole)
    last, r_last = np.linalg.qr(rest)
    top, r = qr(np.concatenate([r.reshape(-1, columns), r_last]))
    first = len(whole) * columns
    upper = q @ top[:first].reshape(len(whole), columns, -1)
    return np.concatenate([upper.reshape(-1, top.shape[1]), last @ top[first:]]), r


def inner(one: Matrix, other: Matrix) -> Matrix:
    """oneᵀ · other; one: (rows, k), other: (rows, l)."""
    step = _step(max(one.shape[1], other.shape[1]))
    (first, rest), (second, others) = _split(one, step), _split(other, step)
    made: Matrix = (first.transpose(0, 2, 1) @ second).sum(axis=0) + rest.T @ others
    return made


def product(tall: Matrix, wide: Matrix) -> Matrix:
    """tall · wide; tall: (rows, k), wide: (k, columns)."""
    width = max(16, 4096 // max(1, tall.shape[1]))
    made: Matrix = np.empty((tall.shape[0], wide.shape[1]))
    for start in range(0, wide.shape[1], width):
        some = slice(start, start + width)
        for top in range(0, tall.shape[0], 64):
            np.matmul(tall[top : top + 64], wide[:, some], out=made[top : top + 64, some])
    return made


def _step(columns: int) -> int:
    """Rows of a block: at least twice the columns, so that the blocks' r's are fewer rows."""
    return max(2 * columns, _ELEMENTS // max(1, columns), 1)


def _split(tall: Matrix, step: int) -> tuple[Matrix, Matrix]:
    """Blocks of `step` rows, as a stack, and the rows that remain."""
    count = tall.shape[0] // step
    whole = np.ascontiguousarray(tall[: count * step])
    return whole.reshape(count, step, tall.shape[1]), tall[count * step :]
