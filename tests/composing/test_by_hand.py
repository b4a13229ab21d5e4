"""Methods of chance, and PEFT's on factors, worked out by hand on 2×3 for draws that are given."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from adapterhub.composing.factored import Factors
from adapterhub.composing.methods import masks, subspaces
from adapterhub.composing.methods.row import Delta, Given
from adapterhub.composing.methods.table import TABLE, method

ONE = [[4, -1, 2], [0, -6, 3]]
OTHER = [[-2, 3, 1], [5, 1, -4]]
DRAWN = [[0.1, 0.9, 0.4], [0.6, 0.2, 0.8]]


@pytest.fixture(autouse=True)
def drawn(monkeypatch: pytest.MonkeyPatch) -> None:
    def uniform(rows: slice, columns: int, seed: int, number: int) -> Any:
        shares = np.array(DRAWN)[rows, :columns]
        return (shares * 2.0**32).astype(np.uint32)

    monkeypatch.setattr(masks, "_uniform", uniform)


def applied(name: str, deltas: Any, weights: Any, **settings: Any) -> Any:
    row = method(name)
    given = Given((2, 3), row.settings(settings), 1, len(deltas), tuple(weights))
    return row.apply([np.array(delta, np.float32) for delta in deltas], weights, given)


CASES: list[tuple[str, Any, dict[str, Any], Any]] = [
    # 0.1, 0.4 and 0.2 are below a half
    ("dare_linear", (1,), {"density": 0.5}, [[8, 0, 4], [0, -12, 0]]),
    ("dare_linear", (1,), {"density": 0.5, "rescale": False}, [[4, 0, 2], [0, -6, 0]]),
    ("dare_linear", (1,), {"density": 0.15, "rescale": False}, [[4, 0, 0], [0, 0, 0]]),
    ("dare_linear", (1,), {"density": 0.95, "rescale": False}, ONE),
    # 2·δ₁ - δ₂ with δ = 2·Δ where it stays
    ("dare_linear", (2, -1), {"density": 0.5}, [[20, 0, 6], [0, -26, 0]]),
    ("dare_linear", (3, 1), {"density": 0.5, "normalize": True}, [[5, 0, 3.5], [0, -8.5, 0]]),
    # δ₁ = [8 0 4 / 0 -12 0], δ₂ = [-4 0 2 / 0 2 0]
    ("dare_ties", (1, 1), {"density": 0.5}, [[8, 0, 6], [0, -12, 0]]),
    ("dare_ties", (1, 1), {"density": 0.5, "normalize": True}, [[8, 0, 3], [0, -12, 0]]),
    ("dare_ties", (1, 3), {"density": 0.5}, [[-12, 0, 10], [0, -12, 0]]),
    ("dare_ties", (1, 7), {"density": 0.5}, [[-28, 0, 18], [0, 14, 0]]),
    # by rank in the row: p = 0.9 0.1 0.5 / 0.1 0.9 0.5
    ("della", (1,), {"density": 0.5, "epsilon": 0.4}, [[4 / 0.9, 0, 4], [0, -6 / 0.9, 0]]),
    # p = 0.8 0.6 0.7 / 0.6 0.8 0.7, and of the other 0.7 0.8 0.6 / 0.8 0.6 0.7
    ("della", (1,), {"density": 0.7, "epsilon": 0.1, "rescale": False}, [[4, 0, 2], [0, -6, 0]]),
    (
        "della",
        (1, 1),
        {"density": 0.7, "epsilon": 0.1, "rescale": False},
        [[4, 0, 1.5], [5, -6, 0]],
    ),
]


@pytest.mark.parametrize(("name", "weights", "settings", "expected"), CASES)
def test_by_chance(name: str, weights: Any, settings: Any, expected: Any) -> None:
    found = applied(name, (ONE, OTHER)[: len(weights)], weights, **settings)
    np.testing.assert_allclose(found, expected, rtol=1e-6)


def test_knots_dare(monkeypatch: pytest.MonkeyPatch) -> None:
    kept = {0: [[1, 0, 0], [0, 0, 1]], 1: [[1, 1, 0], [0, 0, 0]]}
    monkeypatch.setattr(subspaces, "_drawn", lambda shape, density, seed, n: np.array(kept[n]))
    # the rows of both side by side are orthogonal: U is the identity, Σ·Vᵢᵀ is Δᵢ
    terms = [
        Delta(number, 1.0, 1.0, Factors(np.eye(2, dtype="f"), np.array(rows, "f")))
        for number, rows in enumerate(([[4, 1, 0], [0, 0, 2]], [[-2, 3, 0], [0, 0, 1]]))
    ]
    made = subspaces.knots_dare(terms, Given((2, 3), {"density": 0.5}, 1, 2))
    found = made.scale * made.factors.b @ made.factors.a
    # 8 wins against -4
    np.testing.assert_allclose(found, [[8, 6, 0], [0, 0, 4]], atol=1e-12)


@pytest.mark.parametrize(
    ("name", "a", "b"),
    [
        # of three the largest: 2, 3; of two the largest: 2, 1. Means of those with the sign
        ("peft_ties", [[3, 0, 2]], [[0], [1.5]]),
        ("peft_magnitude_prune", [[3, 0, 2]], [[0], [3]]),
        # 0.1, 0.4 stay of a row, and of a column 0.1; doubled
        ("peft_dare_linear", [[8, 0, 4]], [[2], [0]]),
        ("peft_dare_ties", [[4, 0, 4]], [[2], [0]]),
    ],
)
def test_each_factor_by_itself(name: str, a: Any, b: Any) -> None:
    one = Factors(np.array([[1], [2]], "f"), np.array([[1, 0, 2]], "f"))
    two = Factors(np.array([[0], [1]], "f"), np.array([[3, 1, 0]], "f"))
    row = TABLE[name]
    terms = [Delta(n, 1.0, 1.0, factors) for n, factors in enumerate((one, two))]
    made = row.apply(terms, Given((2, 3), row.settings({"density": 0.5}), 1, inputs=2))
    assert (made.factors.a.tolist(), made.factors.b.tolist()) == (a, b)
