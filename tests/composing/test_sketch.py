"""Truncations of dense matrices against LAPACK's."""

from __future__ import annotations

import tracemalloc
from typing import Any

import numpy as np
import pytest

from adapterhub.composing import sketch
from adapterhub.errors import NotMergeable

J = np.arange(1, 301)
SPECTRA = {
    "flat": np.ones(300),
    "plateau": np.where(J <= 20, 1, 0.9),
    "step": np.where(J <= 16, 10.0, 1.0),
    "exponential": 0.9**J,
    "harmonic": 1 / J,
    "slow": J**-0.5,
}


def matrix(s: Any, shape: tuple[int, int], seed: int = 0) -> Any:
    dice = np.random.default_rng(seed)
    u, _ = np.linalg.qr(dice.standard_normal((shape[0], len(s))))
    v, _ = np.linalg.qr(dice.standard_normal((shape[1], len(s))))
    return ((u * s) @ v.T).astype(np.float32)


def residual(delta: Any, found: sketch.Svd) -> float:
    left = delta - (found.u * found.s) @ found.vt
    return float(np.linalg.norm(left) / np.linalg.norm(delta.astype(np.float64)))


@pytest.mark.parametrize("shape", [(400, 320), (320, 700)])
@pytest.mark.parametrize("spectrum", SPECTRA)
def test_within_2_percent_of_the_best_rank(spectrum: str, shape: tuple[int, int]) -> None:
    s = SPECTRA[spectrum]
    delta = matrix(s, shape)
    for rank in (1, 8, 32, 150):
        found, cut = sketch.truncated(delta, rank, None, 5)
        best = np.sqrt(np.sum(s[rank:] ** 2) / np.sum(s**2))
        assert cut.rank == rank == len(found.s)
        assert found.u.shape == (shape[0], rank) and found.vt.shape == (rank, shape[1])
        np.testing.assert_allclose(found.u.T @ found.u, np.eye(rank), atol=1e-9)
        np.testing.assert_allclose(found.vt @ found.vt.T, np.eye(rank), atol=1e-9)
        assert (np.diff(found.s) <= 0).all()
        assert best - 1e-6 <= residual(delta, found) <= 1.02 * best + 1e-6
        assert cut.error == pytest.approx(residual(delta, found), abs=1e-6)


@pytest.mark.parametrize("spectrum", SPECTRA)
def test_an_energy_is_reached_by_few_more_than_the_fewest(spectrum: str) -> None:
    s = SPECTRA[spectrum]
    delta = matrix(s, (400, 330))
    for energy in (0.2, 0.9, 0.99):
        found, cut = sketch.truncated(delta, None, energy, 5)
        fewest = int(np.searchsorted(np.cumsum(s**2), energy * np.sum(s**2) * (1 - 1e-9))) + 1
        assert fewest <= cut.rank <= np.ceil(1.05 * fewest)
        assert cut.energy >= energy * cut.total * (1 - 1e-9)
        assert residual(delta, found) <= np.sqrt(1 - energy) + 1e-5


def test_an_energy_needs_no_decomposition_of_the_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    def whole(delta: Any) -> Any:
        raise AssertionError("the whole was decomposed")

    monkeypatch.setattr(sketch, "_eigen", whole)
    monkeypatch.setattr(sketch, "_lapack", whole)
    delta = matrix(0.95**J, (700, 900))
    for energy, rank in ((0.5, 7), (0.99, 45)):
        assert sketch.truncated(delta, None, energy)[1].rank == rank
    assert sketch.truncated(delta, 20, 0.5)[1].rank == 7
    assert sketch.truncated(delta, 5, 0.99)[1].rank == 5


@pytest.mark.parametrize("rank", [1, 3, 40])
@pytest.mark.parametrize("shape", [(600, 530), (530, 2000), (30, 20), (1, 500), (500, 1), (1, 1)])
def test_what_has_a_low_rank_comes_back(shape: tuple[int, int], rank: int) -> None:
    true = min(3, *shape)
    delta = matrix(np.array([3.0, 2.0, 1e-3])[:true], shape)
    found, cut = sketch.truncated(delta, rank, None)
    assert cut.rank == min(rank, *shape)
    best = 0.0 if rank >= true else np.sqrt(1 - 9 / (9 + 4 + 1e-6))
    assert residual(delta, found) == pytest.approx(best, abs=1e-6)
    _, cut = sketch.truncated(delta, None, 1 - 1e-10)
    assert cut.rank == true


@pytest.mark.parametrize("shape", [(300, 200), (200, 300), (700, 600), (600, 700)])
def test_all_of_it(shape: tuple[int, int]) -> None:
    delta = np.random.default_rng(1).standard_normal(shape).astype(np.float32)
    found, cut = sketch.truncated(delta, None, None)
    assert cut.rank == min(shape) and residual(delta, found) < 1e-9
    expected = np.linalg.svd(delta.astype(np.float64), compute_uv=False)
    np.testing.assert_allclose(found.s, expected, rtol=1e-7)


def test_zeros_stay_zeros_of_rank_1() -> None:
    for shape in ((40, 30), (900, 800)):
        for rank, energy in ((8, None), (None, 0.9), (8, 0.9)):
            found, cut = sketch.truncated(np.zeros(shape, np.float32), rank, energy)
            assert (cut.rank, cut.error) == (1, 0)
            assert not ((found.u * found.s) @ found.vt).any() and found.u.shape == (shape[0], 1)


@pytest.mark.parametrize("factor", [1e-42, 1e-30, 1e30, 1e36])
def test_scales_that_fp32_barely_holds(factor: float) -> None:
    delta = (matrix(0.8**J, (600, 700)).astype(np.float64) * factor).astype(np.float32)
    found, _ = sketch.truncated(delta, 16, None)
    s = np.linalg.svd(delta.astype(np.float64), compute_uv=False)
    np.testing.assert_allclose(found.s, s[:16], rtol=2e-3 if factor < 1e-40 else 1e-5)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_is_refused(value: float) -> None:
    delta = np.ones((30, 40), np.float32)
    delta[3, 4] = value
    with pytest.raises(NotMergeable, match=r"\[30, 40\] becomes infinite or NaN"):
        sketch.truncated(delta, 4, None)


def test_a_seed_gives_one_result() -> None:
    delta = np.random.default_rng(1).standard_normal((600, 700)).astype(np.float32)
    one, two, other = (sketch.truncated(delta, 8, None, seed)[0] for seed in (1, 1, 2))
    assert one.u.tobytes() == two.u.tobytes() and one.s.tobytes() == two.s.tobytes()
    assert one.s.tobytes() != other.s.tobytes()


def test_the_matrix_is_not_copied() -> None:
    delta = np.random.default_rng(1).standard_normal((4096, 2048)).astype(np.float32)
    tracemalloc.start()
    try:
        sketch.truncated(delta, 16, None)
        assert tracemalloc.get_traced_memory()[1] < delta.nbytes
    finally:
        tracemalloc.stop()
