"""The random projection of intrinsic dimension: against its definition, and the same for ever."""

from __future__ import annotations

import hashlib

import fastfood_reference as reference
import numpy as np
import pytest

from adapterhub.methods import fastfood

GOLDEN = "992ef95883e8c84c67ee6b178b0caeac87851d9cfa51bd4c4c088cfd6552431d"


def vector(size: int) -> np.ndarray:
    return np.random.default_rng(size).standard_normal(size, np.float32)


@pytest.mark.parametrize(
    ("d", "size"), [(1, 1), (3, 5), (8, 8), (5, 96), (16, 7), (100, 33), (70, 256)]
)
def test_it_is_what_its_definition_says(d: int, size: int) -> None:
    found = fastfood.project(vector(d), size, 2**63 + d, "a.weight")
    expected = reference.matrix(d, size, 2**63 + d, "a.weight") @ vector(d).astype(np.float64)
    assert (found.dtype, found.shape) == (np.float32, (size,))
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)


def test_numpys_words_are_those_of_the_paper() -> None:
    words = reference.philox(2**128 - 1)
    mine = np.random.Philox(key=2**128 - 1, counter=0).random_raw(9)
    assert [int(word) for word in mine] == [next(words) for _ in range(9)]


def test_the_bits_stay_as_they_were() -> None:
    found = fastfood.project(vector(300), 5000, 7, "model.layers.0.mlp.down_proj.weight")
    assert hashlib.sha256(found.astype("<f4").tobytes()).hexdigest() == GOLDEN


def test_blocks_do_not_change_a_bit(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = fastfood.project(vector(50), 4000, 1, "x")
    monkeypatch.setattr(fastfood, "_BLOCK", 256)
    assert np.array_equal(fastfood.project(vector(50), 4000, 1, "x"), whole)


def test_lengths_are_kept_and_names_and_seeds_tell() -> None:
    found = fastfood.project(vector(64), 3000, 5, "a")
    assert np.linalg.norm(found) == pytest.approx(np.linalg.norm(vector(64)), rel=0.1)
    for other in (
        fastfood.project(vector(64), 3000, 6, "a"),
        fastfood.project(vector(64), 3000, 5, "b"),
    ):
        assert abs(np.corrcoef(found, other)[0, 1]) < 0.1
