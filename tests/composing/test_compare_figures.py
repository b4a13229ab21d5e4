"""Figures of deltas known by factors, against dense fp64 and by hand."""

from __future__ import annotations

import tracemalloc
from typing import Any

import numpy as np
import pytest

from adapterhub.composing.comparing.figures import (
    DenseDelta,
    Overlap,
    cosine,
    low_rank,
    meet,
    sampled,
    signs,
)
from adapterhub.composing.factored import Factors

SHAPES = [(7, 5), (5, 7), (40, 300), (1200, 9), (1, 1)]


def factors(seed: int, out: int, into: int, rank: int) -> Factors:
    dice = np.random.default_rng(seed)
    b, a = dice.standard_normal((out, rank)), dice.standard_normal((rank, into))
    return Factors(b.astype(np.float32), a.astype(np.float32))


def deficient(seed: int, out: int, into: int) -> Factors:
    """Rank 2 in four columns: the third is the first again, the last nothing."""
    one = factors(seed, out, into, 4)
    b = one.b.copy()
    b[:, 2], b[:, 3] = b[:, 0], 0
    return Factors(b, one.a)


def dense(found: Factors) -> Any:
    return found.b.astype(np.float64) @ found.a.astype(np.float64)


def space(delta: Any) -> Any:
    """An orthonormal basis of the columns, by a dense SVD."""
    u, s, _ = np.linalg.svd(delta, full_matrices=False)
    return u[:, s > 1e-6 * s.max(initial=0.0)] if s.max(initial=0.0) > 0 else u[:, :0]


def overlap(one: Any, other: Any) -> tuple[float, float]:
    values = np.linalg.svd(space(one).T @ space(other), compute_uv=False)
    return float((values**2).mean()), float(values.max())


def check_against_dense(first: Factors, second: Factors) -> None:
    a, b = low_rank(first), low_rank(second)
    x, y = dense(first), dense(second)
    assert a.norm == pytest.approx(np.linalg.norm(x), rel=1e-12)
    found = meet(a, b)
    assert found.inner == pytest.approx(np.vdot(x, y), abs=1e-12 * a.norm * b.norm)
    assert found.columns is not None and found.rows is not None
    assert (found.columns.mean, found.columns.largest) == pytest.approx(overlap(x, y), abs=1e-7)
    assert (found.rows.mean, found.rows.largest) == pytest.approx(overlap(x.T, y.T), abs=1e-7)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("ranks", [(1, 1), (3, 8), (16, 2)])
def test_against_dense(shape: tuple[int, int], ranks: tuple[int, int]) -> None:
    check_against_dense(factors(1, *shape, ranks[0]), factors(2, *shape, ranks[1]))


def test_lower_ranks_than_the_factors_say() -> None:
    one = deficient(1, 30, 20)
    assert low_rank(one).rank == 2 and low_rank(factors(1, 30, 20, 4)).rank == 4
    check_against_dense(one, factors(2, 30, 20, 3))
    check_against_dense(one, deficient(3, 30, 20))


def test_by_hand() -> None:
    one = low_rank(Factors(np.array([[1.0], [1]]), np.array([[1.0, 0, 2]])))
    other = low_rank(Factors(np.array([[1.0], [0]]), np.array([[-3.0, 4, 0]])))
    # [[1, 0, 2], [1, 0, 2]] and [[-3, 4, 0], [0, 0, 0]]
    assert (one.norm, other.norm) == pytest.approx((np.sqrt(10), 5))
    found = meet(one, other)
    assert found.inner == pytest.approx(-3)
    assert cosine(found.inner, one.norm, other.norm) == pytest.approx(-3 / np.sqrt(250))
    assert found.columns is not None and found.rows is not None
    assert found.columns.mean == pytest.approx(0.5)
    assert found.columns.largest == pytest.approx(np.sqrt(0.5))
    assert found.rows.mean == pytest.approx(9 / 125)
    counted = signs({0: one, 4: other}, *sampled((2, 3), exact=True))[0, 4]
    assert (counted.looked_at, counted.both, counted.conflicts) == (6, 1, 1)


def test_itself_its_negative_and_nothing() -> None:
    one = factors(1, 30, 20, 4)
    a, b = low_rank(one), low_rank(Factors(-one.b, one.a))
    other = low_rank(factors(9, 30, 20, 4))
    nothing = low_rank(Factors(np.zeros((30, 4)), one.a))
    cancels = low_rank(Factors(np.hstack([one.b, -one.b]), np.vstack([one.a, one.a])))
    assert cosine(meet(a, a).inner, a.norm, a.norm) == pytest.approx(1, abs=1e-14)
    assert cosine(meet(a, b).inner, a.norm, b.norm) == pytest.approx(-1, abs=1e-14)
    assert meet(a, b).columns == Overlap(pytest.approx(1), pytest.approx(1))
    assert signs({0: a, 1: b}, np.arange(30))[0, 1].conflicts == 600
    for empty in (nothing, cancels):
        assert (empty.norm, empty.rank) == (0, 0)
        met = meet(empty, other)
        assert (met.inner, met.columns, met.rows) == (0, None, None)
        assert cosine(met.inner, empty.norm, other.norm) is None
    assert signs({0: nothing, 1: a}, np.arange(30))[0, 1].both == 0


def test_orthogonal_subspaces_do_not_overlap() -> None:
    basis = np.linalg.qr(np.random.default_rng(0).standard_normal((30, 30)))[0]
    one = low_rank(Factors(basis[:, :3], basis[:3]))
    other = low_rank(Factors(basis[:, 3:8], basis[3:8]))
    found = meet(one, other)
    assert found.inner == pytest.approx(0, abs=1e-12)
    assert found.columns == Overlap(pytest.approx(0, abs=1e-20), pytest.approx(0, abs=1e-12))
    assert found.rows == Overlap(pytest.approx(0, abs=1e-20), pytest.approx(0, abs=1e-12))
    inside = low_rank(Factors(basis[:, :8], basis[:8]))
    assert meet(one, inside).columns == Overlap(pytest.approx(1), pytest.approx(1))


def test_other_factors_of_one_delta_change_nothing() -> None:
    one, turn = factors(1, 30, 20, 4).double(), np.random.default_rng(5).standard_normal((4, 4))
    again = low_rank(Factors(one.b @ turn, np.linalg.inv(turn) @ one.a))
    found = meet(low_rank(one), again)
    assert cosine(found.inner, low_rank(one).norm, again.norm) == pytest.approx(1)
    assert found.rows is not None and found.rows.mean == pytest.approx(1)


def test_dense_deltas_and_low_rank_ones() -> None:
    one, two = factors(1, 50, 20, 4), factors(2, 50, 20, 3)
    plain = DenseDelta((dense(one) / 2).astype(np.float32), 2.0)
    other = low_rank(two)
    assert plain.norm == pytest.approx(np.linalg.norm(dense(one)), rel=1e-6)
    for found in (meet(plain, other), meet(other, plain)):
        assert found.inner == pytest.approx(np.vdot(dense(one), dense(two)), rel=1e-5)
        assert found.columns is None
    for rows, columns in (sampled((50, 20), exact=False), (np.arange(0, 50, 3), np.array([2, 7]))):
        found = signs({0: plain, 1: other}, rows, columns)
        assert found == signs({0: low_rank(one), 1: other}, rows, columns)


def test_signs_against_dense() -> None:
    given = {n: factors(n, 37, 29, 3) for n in range(3)}
    given[1].b[5:9] = 0
    found = signs({n: low_rank(each) for n, each in given.items()}, np.arange(37))
    assert list(found) == [(0, 1), (0, 2), (1, 2)]
    for (one, other), counted in found.items():
        product = np.sign(dense(given[one])) * np.sign(dense(given[other]))
        assert counted.conflicts == np.count_nonzero(product < 0)
        assert counted.both == np.count_nonzero(product)
        assert counted.looked_at == 37 * 29


def test_a_sample_is_the_same_everywhere() -> None:
    for shape, sizes in {
        (5000, 4096): (1024, 1024),
        (100, 100): (100, 100),
        (4096, 128_000): (1024, 1024),
        (32, 100_000): (32, 32768),
        (100_000, 32): (32768, 32),
    }.items():
        picked = sampled(shape, exact=False)
        for size, count, found in zip(shape, sizes, picked, strict=True):
            numbers = np.arange(size)[found]
            assert len(numbers) == count == len(set(numbers.tolist()))
            assert (np.diff(numbers) > 0).all()
        rows, columns = sampled(shape, exact=True)
        assert len(rows) == shape[0] and columns == slice(None)
    rows, columns = (each[:4].tolist() for each in sampled((5000, 4096), exact=False))
    assert (rows, columns) == ([0, 2, 9, 11], [2, 3, 5, 7])


@pytest.mark.parametrize("shape", [(1100, 1200), (1024, 20000)])
@pytest.mark.parametrize("decay", [0.5, 0.01])
def test_a_sample_tells_of_the_whole(shape: tuple[int, int], decay: float) -> None:
    """Of deltas with few strong directions, and one side in common: a row, or a column, is then
    alike all along."""
    strength = (decay ** np.arange(4)).astype(np.float32)
    one, two = (factors(n, *shape, 4) for n in (1, 2))
    for other in (Factors(two.b * strength, one.a), Factors(one.b, two.a * strength[:, None])):
        both = {0: low_rank(Factors(one.b * strength, one.a)), 1: low_rank(other)}
        part = signs(both, *sampled(shape, exact=False))[0, 1]
        whole = signs(both, np.arange(shape[0]))[0, 1]
        share = whole.conflicts / whole.looked_at
        assert part.conflicts / part.looked_at == pytest.approx(share, abs=3 * 0.022)


def test_a_sample_of_a_wide_delta_takes_no_whole_rows() -> None:
    values = np.random.default_rng(0).standard_normal((1024, 20_000)).astype(np.float32)
    wide = DenseDelta(values, 2.0)
    grid = sampled(wide.shape, exact=False)
    tracemalloc.start()
    try:
        found = signs({0: wide, 1: DenseDelta(-values, 1.0)}, *grid)[0, 1]
        assert tracemalloc.get_traced_memory()[1] < values.nbytes + (24 << 20)
    finally:
        tracemalloc.stop()
    assert found.conflicts == found.both == found.looked_at == 1 << 20
