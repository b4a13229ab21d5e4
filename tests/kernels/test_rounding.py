from __future__ import annotations

import ml_dtypes
import numpy as np
import oracle
import pytest

from adapterhub.kernels import NonFinite, round_to

HALF, BFLOAT16 = np.dtype(np.float16), np.dtype(ml_dtypes.bfloat16)


def magnitudes(dtype: np.dtype) -> np.ndarray:
    """Every finite value ≥ 0 of the dtype in ascending order, float64."""
    if dtype == HALF:
        return np.arange(0x7C00, dtype=np.uint16).view(np.float16).astype(np.float64)
    return (np.arange(0x7F80, dtype=np.uint32) << 16).view(np.float32).astype(np.float64)


def nearest(values: np.ndarray, dtype: np.dtype) -> np.ndarray:
    """Bits of the nearest number by comparison of exact float64 distances to both neighbours."""
    table = magnitudes(dtype)
    size = np.abs(values.astype(np.float64))
    below = np.searchsorted(table, size, side="right") - 1
    above = np.minimum(below + 1, table.size - 1)
    down, up = size - table[below], table[above] - size
    take_up = (up < down) | ((up == down) & (below % 2 == 1))
    sign = np.where(np.signbit(values), 0x8000, 0)
    return (np.where(take_up, above, below) | sign).astype(np.uint16)


def beside_every_boundary(dtype: np.dtype) -> np.ndarray:
    """Each number and each midpoint of the dtype, with the float32 before and after; both signs."""
    table = magnitudes(dtype)
    points = np.concatenate([table, (table[1:] + table[:-1]) / 2]).astype(np.float32)
    pattern = points.view(np.uint32).astype(np.int64)
    around = np.concatenate([pattern - 1, pattern, pattern + 1])
    around = around[(around >= 0) & (around <= np.float32(table[-1]).view(np.uint32))]
    return np.concatenate([around, around | 0x80000000]).astype(np.uint32).view(np.float32)


@pytest.mark.parametrize("dtype", [HALF, BFLOAT16], ids=str)
def test_nearest_even_at_every_boundary(dtype: np.dtype) -> None:
    """Rounding is monotonic, so what is right beside every boundary is right between them."""
    values = beside_every_boundary(dtype)
    assert values.size > 180_000
    got = round_to(values, dtype)
    assert got.dtype == dtype
    np.testing.assert_array_equal(got.view(np.uint16), nearest(values, dtype))


@pytest.mark.parametrize("dtype", [HALF, BFLOAT16], ids=str)
def test_nearest_even_on_random_bits(dtype: np.dtype) -> None:
    pattern = np.random.default_rng(1).integers(0, 2**32, 500_000, np.uint32)
    values = pattern.view(np.float32)
    with np.errstate(all="ignore"):
        values = values[np.abs(values) <= magnitudes(dtype)[-1]]
    np.testing.assert_array_equal(round_to(values, dtype).view(np.uint16), nearest(values, dtype))


@pytest.mark.parametrize("dtype", [HALF, BFLOAT16], ids=str)
def test_table_oracle_agrees_with_fractions(dtype: np.dtype) -> None:
    values = np.random.default_rng(2).choice(beside_every_boundary(dtype), 2000)
    exact = [oracle._round(value, dtype.name) for value in values.tolist()]
    want = np.array(exact).astype(dtype).view(np.uint16)
    np.testing.assert_array_equal(nearest(values, dtype), want)


def test_float32_is_copied() -> None:
    acc = np.array([[1e-45, -0.0, 3.0e38]], np.float32)
    got = round_to(acc, np.dtype(np.float32))
    assert got.tobytes() == acc.tobytes() and not np.shares_memory(got, acc)


@pytest.mark.parametrize(
    ("dtype", "last", "first_too_large"),
    [
        (HALF, np.nextafter(np.float32(65520), np.float32(0)), np.float32(65520)),
        (BFLOAT16, *np.array([0x7F7F7FFF, 0x7F7F8000], np.uint32).view(np.float32)),
    ],
    ids=str,
)
@pytest.mark.parametrize("sign", [1, -1])
def test_overflow_starts_half_a_unit_beyond_the_largest(
    dtype: np.dtype, last: np.float32, first_too_large: np.float32, sign: int
) -> None:
    largest = sign * float(magnitudes(dtype)[-1])
    assert float(round_to(np.array([sign * last]), dtype)[0]) == largest
    with pytest.raises(NonFinite, match=r"result overflows or is NaN at \(1, 2\)") as caught:
        values = np.zeros((2, 3), np.float32)
        values[1, 2] = sign * first_too_large
        round_to(values, dtype)
    assert (caught.value.operand, caught.value.index) == ("result", (1, 2))


@pytest.mark.parametrize("dtype", [np.dtype(np.float32), HALF, BFLOAT16], ids=str)
@pytest.mark.parametrize("pattern", [0x7F800000, 0xFF800000, 0x7FC00000, 0x7FFFFFFF, 0xFF800001])
def test_non_finite_input_is_refused(dtype: np.dtype, pattern: int) -> None:
    values = np.array([0, 0, pattern], np.uint32).view(np.float32).reshape(3, 1, 1)
    with pytest.raises(NonFinite) as caught:
        round_to(values, dtype)
    assert caught.value.index == (2, 0, 0)


def test_any_shape_and_stride() -> None:
    values = np.arange(24, dtype=np.float32).reshape(2, 3, 4).transpose(2, 0, 1)
    np.testing.assert_array_equal(round_to(values, HALF), values.astype(np.float16))
    assert round_to(np.float32(1.5).reshape(()), BFLOAT16).shape == ()
    assert round_to(np.empty((0, 3), np.float32), HALF).shape == (0, 3)


def test_other_dtypes_are_refused() -> None:
    with pytest.raises(TypeError, match="not float64"):
        round_to(np.zeros(1, np.float32), np.dtype(np.float64))
    with pytest.raises(TypeError, match="takes float32, got float64"):
        round_to(np.zeros(1), HALF)  # type: ignore[arg-type]
