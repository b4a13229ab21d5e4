"""Which elements remain: exact counts, whatever the values, the blocks and the threads."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from adapterhub.composing import blocks
from adapterhub.composing.methods import masks

SHAPES = [(1, 1), (1, 40), (40, 1), (7, 13), (64, 5)]


def values(kind: str, shape: tuple[int, int]) -> Any:
    dice = np.random.default_rng(3)
    made = dice.standard_normal(shape).astype(np.float32)
    if kind == "equal":
        made = np.where(made > 0, np.float32(2.5), np.float32(-2.5))
    elif kind == "few":
        made = np.round(made)
    elif kind == "subnormal":
        made = (made * 2.0**-147).astype(np.float32)
    elif kind == "wide":
        made = (made * 2.0 ** dice.integers(-120, 120, shape)).astype(np.float32)
    elif kind == "close":  # differ in the lowest bits only
        made = (1 + dice.integers(0, 50, shape) * 2.0**-23).astype(np.float32)
    return made


@pytest.mark.parametrize("kind", ["normal", "equal", "few", "subnormal", "wide", "close"])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("elements", [6, 1 << 18])
def test_the_largest_are_those_of_a_stable_sort(
    kind: str, shape: tuple[int, int], elements: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(blocks, "ELEMENTS", elements)
    delta = values(kind, shape)
    order = np.argsort(-np.abs(delta).ravel(), kind="stable")
    for count in sorted({0, 1, delta.size // 3, delta.size // 2, delta.size - 1, delta.size}):
        chosen = masks.largest(shape, lambda rows: delta[rows], count)
        found = [chosen.mask(rows, delta[rows]) for rows in blocks.blocks(shape)]
        expected = np.zeros(delta.size, bool)
        expected[order[:count]] = True
        np.testing.assert_array_equal(np.concatenate(found), expected.reshape(shape))


def test_how_many_remain_is_what_peft_and_mergekit_count() -> None:
    assert [masks.kept_of(10, share) for share in (0.3, 0.55, 0.999, 1.0)] == [3, 5, 9, 10]
    assert masks.kept_of(100, 0.29) == int(0.29 * 100) == 28
    assert masks.kept_of(10, 0.01) == 1 and masks.kept_of(0, 0.5) == 0


def test_a_rest_next_to_nothing_is_not_blown_up() -> None:
    delta = np.array([[1000, 1e-8, 1e-9]], np.float32)
    masks.drop_outliers(delta, 1 / 3, 1 / 3, rescale=True)
    np.testing.assert_array_equal(delta, np.array([[0, 1e-8, 0]], np.float32))


@pytest.mark.parametrize("columns", [1, 7, 8, 9, 33])
def test_an_element_has_its_own_place_in_the_stream(columns: int) -> None:
    whole = masks._uniform(slice(0, 20), columns, 99, 3)
    assert whole.shape == (20, columns) and whole.dtype == np.uint32
    for start, stop in ((0, 1), (5, 11), (19, 20)):
        part = masks._uniform(slice(start, stop), columns, 99, 3)
        np.testing.assert_array_equal(part, whole[start:stop])
    # nothing is used twice, by rows or by inputs
    other = masks._uniform(slice(0, 20), columns, 99, 4)
    assert len(np.unique(np.concatenate([whole, other]))) == 40 * columns


def test_the_smallest_and_largest_shares() -> None:
    limits = masks._limits(np.array([1e-300, 2.0**-32, 0.5, 1 - 2.0**-40]))
    assert limits.tolist() == [1, 1, 2**31, 2**32 - 1]


@pytest.mark.parametrize("kind", ["normal", "equal", "few", "subnormal", "close"])
@pytest.mark.parametrize("shape", SHAPES)
def test_ranks_are_those_of_a_stable_sort(kind: str, shape: tuple[int, int]) -> None:
    delta = values(kind, shape)
    order = np.argsort(np.abs(delta), axis=1, kind="stable")
    np.testing.assert_array_equal(masks._ranks(delta), np.argsort(order, axis=1))
