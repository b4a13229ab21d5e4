"""What every kernel takes and refuses, and in what order it walks a weight."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
BFLOAT16: np.dtype[Any] = np.dtype(ml_dtypes.bfloat16)

# A share of a stored matrix, in the order of its bytes: (scale, R, C) with R (rows, rank) and
# C (rank, columns), or (scale, None, t) with t (columns,), the share of its single row.
StoredTerm = tuple[np.float32, NDArray[np.float32] | None, NDArray[np.float32]]
Place = tuple[Literal["weight", "result"], int]  # what is not finite, and its flat stored index

# Elements worked on at once. The float64 scratch of one tile is about 6 MB: numpy's cost per call
# weighs little, and the tile stays in a last-level cache.
TILE = 1 << 17

# Stored dtype → its bits as integers, and the exponent field, all ones for inf and NaN.
_BITS: dict[np.dtype[Any], tuple[np.dtype[Any], int]] = {
    np.dtype(np.float32): (np.dtype(np.uint32), 0x7F800000),
    np.dtype(np.float16): (np.dtype(np.uint16), 0x7C00),
    BFLOAT16: (np.dtype(np.uint16), 0x7F80),
}


class NonFinite(ValueError):
    """An operand holds inf or NaN, or a result does not fit its dtype.

    `operand` is "weight", "a", "b", "scale", "bias" or "result"; `factor` numbers the adapter it
    came from (None for weight and result); `index` is its logical place in the operand.
    """

    def __init__(self, operand: str, index: tuple[int, ...], factor: int | None = None) -> None:
        whose = "" if factor is None else f" of factor {factor}"
        where = f" at {index}" if index else ""
        what = "overflows or is NaN" if operand == "result" else "is not finite"
        super().__init__(f"{operand}{whose} {what}{where}")
        self.operand = operand
        self.index = index
        self.factor = factor


@dataclass(frozen=True, eq=False)
class Factor:
    """One adapter's share of a weight: `scale · b @ a`.

    `a`: (rank, in) float32; `b`: (out, rank) float32; `scale`: the coefficient c of DESIGN §4,
    computed in float64 and rounded once to float32. Raises TypeError, ValueError.
    """

    a: NDArray[np.float32]
    b: NDArray[np.float32]
    scale: np.float32

    def __post_init__(self) -> None:
        if self.a.dtype != np.float32 or self.b.dtype != np.float32:
            raise TypeError(f"a and b must be float32, got {self.a.dtype} and {self.b.dtype}")
        if not isinstance(self.scale, np.float32):
            raise TypeError(f"scale must be a numpy float32, got {type(self.scale).__name__}")
        if self.a.ndim != 2 or self.b.ndim != 2 or self.a.shape[0] != self.b.shape[1]:
            raise ValueError(
                f"a must be (rank, in) and b (out, rank), got {self.a.shape} and {self.b.shape}"
            )


def check_factors(shape: tuple[int, ...], factors: Sequence[Factor]) -> None:
    """Refuse what does not fit a weight of `shape`. Raises ValueError, NonFinite."""
    if len(shape) != 2:
        raise ValueError(f"weight must be (out, in), got {shape}")
    for number, factor in enumerate(factors):
        delta = (factor.b.shape[0], factor.a.shape[1])
        if delta != shape:
            raise ValueError(f"weight is {shape}, factor {number} is for {delta}")
        check_scale(factor.scale, number)
        check_finite(factor.a, "a", number)
        check_finite(factor.b, "b", number)


def check_terms(shape: tuple[int, ...], terms: Sequence[tuple[np.float32, Array]]) -> None:
    """The same for the terms of `add_scaled`; TypeError too."""
    if len(shape) != 1:
        raise ValueError(f"weight must be (n,), got {shape}")
    for number, (scale, bias) in enumerate(terms):
        if bias.dtype != np.float32 or not isinstance(scale, np.float32):
            raise TypeError(f"term {number} must be a float32 scale and a float32 array")
        if bias.shape != shape:
            raise ValueError(f"weight is {shape}, term {number} is {bias.shape}")
        check_scale(scale, number)
        check_finite(bias, "bias", number)


def check_dtype(dtype: np.dtype[Any]) -> None:
    if dtype not in _BITS:
        raise TypeError(f"the merge formula covers float32, float16 and bfloat16, not {dtype}")


def check_scale(scale: np.float32, factor: int) -> None:
    if not math.isfinite(scale):
        raise NonFinite("scale", (), factor)


def check_finite(array: Array, operand: str, factor: int | None = None) -> None:
    """Raise NonFinite at the first inf or NaN in C order."""
    for place in tiles(array.shape):
        index = first_nonfinite(array[place])
        if index is not None:
            raise NonFinite(operand, shifted(index, place), factor)


def first_nonfinite(array: Array) -> tuple[int, ...] | None:
    """Index of the first inf or NaN in C order. Reads bits, so no float mode can hide one."""
    integer, exponent = _BITS[array.dtype]
    bad = (array.view(integer) & integer.type(exponent)) == exponent
    if not bad.any():
        return None
    return tuple(int(i) for i in np.unravel_index(int(bad.argmax()), bad.shape))


def tiles(shape: tuple[int, ...]) -> Iterator[tuple[slice, ...]]:
    """Cut a 1-D or 2-D shape, in C order, into pieces of at most TILE elements."""
    if 0 in shape:
        return
    columns = shape[-1]
    spans = [slice(j, min(j + TILE, columns)) for j in range(0, columns, TILE)]
    if len(shape) == 1:
        yield from ((span,) for span in spans)
        return
    step = max(1, TILE // columns)
    for i in range(0, shape[0], step):
        for span in spans:
            yield slice(i, min(i + step, shape[0])), span


def shifted(index: tuple[int, ...], place: tuple[slice, ...]) -> tuple[int, ...]:
    """An index inside a tile → the index in the whole array."""
    return tuple(i + int(span.start) for i, span in zip(index, place, strict=True))
