from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest

from adapterhub.kernels import Factor, NonFinite, add_scaled, merge_low_rank, operands

BAD = [np.inf, -np.inf, np.nan]


def factor(out: int, columns: int, rank: int = 2, scale: float = 1) -> Factor:
    a = np.ones((rank, columns), np.float32)
    return Factor(a, np.ones((out, rank), np.float32), np.float32(scale))


@pytest.mark.parametrize("bad", BAD)
@pytest.mark.parametrize("tile", [4, operands.TILE])
@pytest.mark.parametrize("operand", ["weight", "a", "b", "scale"])
@pytest.mark.filterwarnings("error")
def test_non_finite_operands_are_refused_with_their_place(
    operand: str, tile: int, bad: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(operands, "TILE", tile)
    weight = np.ones((5, 6), np.float16)
    second = factor(5, 6, scale=bad if operand == "scale" else 1)
    index = {"weight": (3, 4), "a": (1, 5), "b": (4, 1), "scale": ()}[operand]
    if operand != "scale":
        target = weight if operand == "weight" else getattr(second, operand)
        target[index] = bad
    with pytest.raises(NonFinite) as caught:
        merge_low_rank(weight, [factor(5, 6), second])
    assert caught.value.operand == operand
    assert caught.value.index == index
    assert caught.value.factor == (None if operand == "weight" else 1)


def test_message() -> None:
    assert str(NonFinite("a", (1, 5), 1)) == "a of factor 1 is not finite at (1, 5)"
    assert str(NonFinite("weight", (0, 2))) == "weight is not finite at (0, 2)"
    assert str(NonFinite("scale", (), 0)) == "scale of factor 0 is not finite"


def test_place_is_logical_in_a_transposed_weight() -> None:
    weight = np.zeros((6, 5), np.float32)
    weight[4, 3] = np.nan
    with pytest.raises(NonFinite, match=r"weight is not finite at \(3, 4\)"):
        merge_low_rank(weight.T, [])


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16, np.float32])
def test_result_that_overflows_its_dtype_is_refused(dtype: type) -> None:
    weight = np.zeros((2, 3)).astype(dtype)
    weight[1, 1] = ml_dtypes.finfo(dtype).max
    push = Factor(np.ones((1, 3), np.float32), np.ones((2, 1), np.float32), np.float32(1))
    largest = float(ml_dtypes.finfo(dtype).max)
    unit = largest - float(np.nextafter(weight[1, 1], weight.dtype.type(0)))
    push.a[0, 1] = unit / 2
    with pytest.raises(NonFinite) as caught:
        merge_low_rank(weight, [push])
    assert (caught.value.operand, caught.value.index) == ("result", (1, 1))
    push.a[0, 1] = np.nextafter(np.float32(unit / 2), np.float32(0)) / 2
    assert float(merge_low_rank(weight, [push])[1, 1]) == largest


@pytest.mark.parametrize("scale", [1, 0, -1])
def test_overflow_on_the_way_is_refused_although_terms_cancel(scale: float) -> None:
    a = np.full((3, 1), 3e38, np.float32)
    b = np.array([[1, 1, -1]], np.float32)
    with pytest.raises(NonFinite, match=r"result overflows or is NaN at \(0, 0\)"):
        merge_low_rank(np.zeros((1, 1), np.float32), [Factor(a, b, np.float32(scale))])


def test_caller_who_traps_warnings_sees_none() -> None:
    with np.errstate(all="raise"):
        tiny = Factor(*np.full((2, 1, 1), 1e-30, np.float32), np.float32(1e-30))
        assert merge_low_rank(np.zeros((1, 1), np.float16), [tiny]).item() == 0


def test_add_scaled_refuses_non_finite() -> None:
    weight, bias = np.zeros(3, np.float32), np.array([0, 0, np.nan], np.float32)
    with pytest.raises(NonFinite, match=r"bias of factor 0 is not finite at \(2,\)"):
        add_scaled(weight, [(np.float32(1), bias)])
    with pytest.raises(NonFinite, match="scale of factor 0 is not finite"):
        add_scaled(weight, [(np.float32(np.inf), weight)])
    with pytest.raises(NonFinite, match=r"weight is not finite at \(2,\)"):
        add_scaled(bias, [])
    with pytest.raises(NonFinite, match=r"result overflows or is NaN at \(1,\)"):
        large = np.array([0, 3e38, 0], np.float32)
        add_scaled(large, [(np.float32(1), large)])


def test_shapes_must_fit() -> None:
    with pytest.raises(ValueError, match=r"weight is \(2, 3\), factor 1 is for \(3, 2\)"):
        merge_low_rank(np.zeros((2, 3), np.float32), [factor(2, 3), factor(3, 2)])
    with pytest.raises(ValueError, match=r"weight must be \(out, in\), got \(3,\)"):
        merge_low_rank(np.zeros(3, np.float32), [])
    with pytest.raises(ValueError, match=r"a must be \(rank, in\)"):
        Factor(np.zeros((2, 3), np.float32), np.zeros((3, 3), np.float32), np.float32(1))
    with pytest.raises(ValueError, match=r"weight is \(3,\), term 0 is \(1,\)"):
        add_scaled(np.zeros(3, np.float32), [(np.float32(1), np.zeros(1, np.float32))])


def test_dtypes_must_fit() -> None:
    one = np.ones((1, 1), np.float32)
    for dtype in ("f8", "i4", ">f4", ml_dtypes.float8_e4m3fn):
        with pytest.raises(TypeError, match="covers float32, float16 and bfloat16"):
            merge_low_rank(np.zeros((1, 1)).astype(dtype), [])
    with pytest.raises(TypeError, match="must be float32, got float64"):
        Factor(one.astype("f8"), one, np.float32(1))
    with pytest.raises(TypeError, match="must be float32, got >f4"):
        Factor(one.astype(">f4"), one, np.float32(1))
    with pytest.raises(TypeError, match="scale must be a numpy float32, got float"):
        Factor(one, one, 0.1)  # type: ignore[arg-type]


@pytest.mark.parametrize("shape", [(3, 5), (1, 40), (40, 1), (7, 7), (0, 4), (4, 0), (11,), (0,)])
@pytest.mark.parametrize("tile", [1, 6, 10, 1000])
def test_tiles_cover_each_element_once_in_order(
    shape: tuple[int, ...], tile: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(operands, "TILE", tile)
    elements = np.arange(np.prod(shape, dtype=int)).reshape(shape)
    pieces = [elements[place].reshape(-1) for place in operands.tiles(shape)]
    assert all(0 < piece.size <= tile for piece in pieces)
    assert [i for piece in pieces for i in piece.tolist()] == list(range(elements.size))
