"""The merge arithmetic of DESIGN §4 in numpy: exact, and the specification of every kernel.

    t_a = 0;   for k = 0 … r_a-1:  t_a = fma(B_a[i,k], A_a[k,j], t_a)      in fp32, k ascending
    acc = fp32(W[i,j]);  for a in order:  acc = fma(c_a, t_a, acc)           in fp32
    out = round_to_nearest_even(acc → dtype)

Callers go through `adapterhub.kernels`, which checks the operands; `ReferenceWork` and that
module's functions set the float mode.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from adapterhub.kernels.floatmode import default_float_mode
from adapterhub.kernels.operands import (
    BFLOAT16,
    TILE,
    Array,
    Factor,
    NonFinite,
    Place,
    StoredTerm,
    check_dtype,
    first_nonfinite,
    shifted,
    tiles,
)

_BELOW_FP32 = np.int64((1 << 29) - 1)  # the bits of a float64 significand that float32 lacks
_MIDPOINT = np.int64(1 << 28)
_SMALLEST_NORMAL = np.float32(2.0**-126)


def fma(
    a: NDArray[np.float32], b: NDArray[np.float32], c: NDArray[np.float32]
) -> NDArray[np.float32]:
    """a · b + c with one rounding to float32, element by element. The definition, not the fast way.

    All broadcast to one shape, float32. Method: Boldo and Melquiond, "Emulation of FMA and
    correctly rounded sums: proved algorithms using rounding to odd" (2008).

    Why it is exact. A product of two 24-bit significands has 48 bits and lies between 2^-298 and
    2^256, so float64 holds it. The sum is then odd-rounded: if inexact, to the neighbour whose
    last bit is 1. Such a number is never a float32 nor halfway between two, and it lies on the
    same side of all of them as the true sum, provided that float64 has two bits more than the
    target: 53 ≥ 24 + 2. Subnormal float32 has fewer than 24 bits, so this holds there a fortiori,
    and the sum, a multiple of 2^-298, is never subnormal in float64. The largest float32
    plus half a unit is such a halfway point too: overflow is decided rightly. An exact zero keeps
    the sign that IEEE addition gives it, and any other sum, cancellation included, is non-zero.
    """
    with np.errstate(all="ignore"):
        product = np.multiply(a, b, dtype=np.float64)
        total = _add_rounded_to_odd(product, np.asarray(c, np.float64))
        narrowed: NDArray[np.float32] = total.astype(np.float32)
        return narrowed


def _add_rounded_to_odd(x: Array, y: Array) -> Array:
    """x + y in float64; an inexact sum becomes the neighbour whose last bit is 1."""
    total = np.asarray(x + y)
    # TwoSum (Knuth): total + error is x + y exactly.
    part = total - x
    error = np.asarray((x - (total - part)) + (y - part))
    bits: NDArray[np.int64] = total.view(np.int64)
    inexact = error != 0
    # Step back to the neighbour nearer to zero where the error points there, then set the bit.
    inward = inexact & (np.signbit(error) != np.signbit(total))
    odd: NDArray[np.int64] = np.asarray((bits - inward) | inexact)
    return odd.view(np.float64)


class _Accumulator:
    """Scratch for fma over tiles, allocated once; state is kept in float64 holding float32."""

    def __init__(self, size: int) -> None:
        wide = [np.empty(size, np.float64) for _ in range(6)]
        self._product, self._total, self._spare, self._state, self._inner, self._row = wide
        self._narrow = np.empty(size, np.float32)
        self._masks = np.empty(size, np.bool_), np.empty(size, np.bool_)
        self.shape: tuple[int, ...] = (size,)

    def load(self, weight: Array) -> None:
        """Start from a tile of the weight, upcast exactly."""
        self.shape = weight.shape
        if weight.dtype == BFLOAT16:
            weight = (weight.view(np.uint16).astype(np.uint32) << 16).view(np.float32)
        np.copyto(self._as_tile(self._state), weight)

    def add_low_rank(self, a: NDArray[np.float32], b: NDArray[np.float32], c: np.float32) -> None:
        """`a`: (rank, columns of the tile), `b`: (rows of the tile, rank)."""
        inner = self._as_tile(self._inner)
        inner.fill(0)
        row = self._row[: a.shape[1]]
        for k in range(a.shape[0]):
            np.copyto(row, a[k])
            self._fma(b[:, k, None].astype(np.float64), row, inner)
        self._fma(np.float64(c), inner, self._as_tile(self._state))

    def add_scaled(self, c: np.float32, bias: NDArray[np.float32]) -> None:
        """`bias`: the shape of the tile."""
        inner = self._as_tile(self._inner)
        np.copyto(inner, bias)
        self._fma(np.float64(c), inner, self._as_tile(self._state))

    def result(self) -> NDArray[np.float32]:
        return self._as_tile(self._state).astype(np.float32)

    def _as_tile(self, scratch: Array) -> Array:
        return scratch[: np.prod(self.shape, dtype=int)].reshape(self.shape)

    def _fma(self, x: Array | np.float64, y: Array, state: Array) -> None:
        """state = fma(x, y, state).

        Equal to `fma` with less work. float64 addition is monotonic, so casting its sum goes wrong
        only where the sum has itself been rounded onto a point halfway between two float32, and
        only there the error is looked at. Among normal float32 these points are told by the bits
        below; among subnormals every non-zero sum counts as suspect.
        """
        product, total = self._as_tile(self._product), self._as_tile(self._total)
        narrow, spare = self._as_tile(self._narrow), self._as_tile(self._spare).view(np.int64)
        halfway, suspect = (self._as_tile(mask) for mask in self._masks)
        np.multiply(x, y, out=product)
        np.add(product, state, out=total)
        np.copyto(narrow, total, casting="same_kind")
        np.bitwise_and(total.view(np.int64), _BELOW_FP32, out=spare)
        np.equal(spare, _MIDPOINT, out=halfway)
        magnitude = spare.view(np.float32).reshape(-1)[: narrow.size].reshape(narrow.shape)
        np.abs(narrow, out=magnitude)
        np.less_equal(magnitude, _SMALLEST_NORMAL, out=suspect)
        np.logical_or(suspect, halfway, out=suspect)
        if suspect.any():
            suspect &= total != 0
            narrow[suspect] = _add_rounded_to_odd(product[suspect], state[suspect])
        np.copyto(state, narrow)


def merge_low_rank(weight: Array, factors: Sequence[Factor], dtype: np.dtype[Any]) -> Array:
    """(out, in) in, a fresh C-order (out, in) of `dtype` out. Raises NonFinite("result")."""
    merged = np.empty(weight.shape, dtype)
    accumulator = _Accumulator(min(TILE, weight.size))
    with np.errstate(all="ignore"):
        for place in tiles(weight.shape):
            rows, columns = place
            accumulator.load(weight[place])
            for factor in factors:
                accumulator.add_low_rank(factor.a[:, columns], factor.b[rows], factor.scale)
            merged[place] = _rounded(accumulator.result(), dtype, place)
    return merged


def add_scaled(
    weight: Array, terms: Sequence[tuple[np.float32, NDArray[np.float32]]], dtype: np.dtype[Any]
) -> Array:
    """acc = fma(c, bias, acc) over `terms`, on (n,). Raises NonFinite("result")."""
    summed = np.empty(weight.shape, dtype)
    accumulator = _Accumulator(min(TILE, weight.size))
    with np.errstate(all="ignore"):
        for place in tiles(weight.shape):
            accumulator.load(weight[place])
            for scale, bias in terms:
                accumulator.add_scaled(scale, bias[place])
            summed[place] = _rounded(accumulator.result(), dtype, place)
    return summed


def round_to(acc: NDArray[np.float32], dtype: np.dtype[Any]) -> Array:
    """Round a float32 array of any shape to nearest even; a fresh C-order array.

    `dtype`: float32 (a copy), float16 or bfloat16. Raises NonFinite("result") for inf, NaN and
    whatever would overflow `dtype`, TypeError for other dtypes.
    """
    check_dtype(dtype)
    if acc.dtype != np.float32:
        raise TypeError(f"round_to takes float32, got {acc.dtype}")
    flat = acc.reshape(-1)
    rounded = np.empty(flat.shape, dtype)
    try:
        with np.errstate(all="ignore"):
            for place in tiles(flat.shape):
                rounded[place] = _rounded(flat[place], dtype, place)
    except NonFinite as error:
        index = np.unravel_index(error.index[0], acc.shape)
        raise NonFinite("result", tuple(int(i) for i in index)) from None
    return rounded.reshape(acc.shape)


def _rounded(acc: NDArray[np.float32], dtype: np.dtype[Any], place: tuple[slice, ...]) -> Array:
    # An intermediate inf cannot turn finite again, so what is seen here is all there is. Both are
    # looked at: rounding to bfloat16 may carry a NaN over to zero.
    rounded = _to_bfloat16(acc) if dtype == BFLOAT16 else acc.astype(dtype)
    bad = [i for i in (first_nonfinite(acc), first_nonfinite(rounded)) if i is not None]
    if bad:
        raise NonFinite("result", shifted(min(bad), place))
    return rounded


def _to_bfloat16(acc: NDArray[np.float32]) -> Array:
    """On integers: half a unit less one, plus one if the kept part is odd, carries as it must."""
    bits = acc.view(np.uint32)
    odd = (bits >> np.uint32(16)) & np.uint32(1)
    kept = (bits + odd + np.uint32(0x7FFF)) >> np.uint32(16)
    return kept.astype(np.uint16).view(BFLOAT16)


class ReferenceWork:
    """What `compiled.CompiledWork` is, in numpy: the same arguments, results and faults."""

    def __init__(
        self,
        shape: tuple[int, int],
        dtypes: tuple[np.dtype[Any], np.dtype[Any]],
        terms: Sequence[StoredTerm],
    ) -> None:
        self._columns, self._dtype = shape[1], dtypes[1]
        self._factors = [Factor(c, r, scale) for scale, r, c in terms if r is not None]
        self._vectors = [(scale, t) for scale, r, t in terms if r is None]

    def run(self, source: Array, target: Array, first: int) -> Place | None:
        """1-D arrays of equal length; what is wrong first, if anything is."""
        with default_float_mode():
            bad = first_nonfinite(source)
            if bad is not None:
                return "weight", first + bad[0]
            done = 0
            for rows, columns in rectangles(first, source.size, self._columns):
                size = (rows.stop - rows.start) * (columns.stop - columns.start)
                piece = slice(done, done + size)
                try:
                    target[piece] = self._merged(source[piece], rows, columns)
                except NonFinite as error:
                    return "result", first + done + error.index[0]
                done += size
        return None

    def _merged(self, weight: Array, rows: slice, columns: slice) -> Array:
        """One rectangle, flat. Raises NonFinite with the flat index inside it."""
        if self._vectors:
            terms = [(scale, t[columns]) for scale, t in self._vectors]
            return add_scaled(weight, terms, self._dtype)
        shape = (rows.stop - rows.start, columns.stop - columns.start)
        factors = [Factor(f.a[:, columns], f.b[rows], f.scale) for f in self._factors]
        try:
            return merge_low_rank(weight.reshape(shape), factors, self._dtype).reshape(-1)
        except NonFinite as error:
            flat = int(np.ravel_multi_index(error.index, shape))
            raise NonFinite("result", (flat,)) from None


def rectangles(first: int, count: int, columns: int) -> Iterator[tuple[slice, slice]]:
    """Elements `first` … `first + count - 1` of a matrix: a cut row, whole rows, a cut row."""
    last = first + count
    while first < last:
        row, column = divmod(first, columns)
        whole = 0 if column else (last - first) // columns
        stop = columns if whole else min(columns, column + last - first)
        yield slice(row, row + max(1, whole)), slice(column, stop)
        first += max(1, whole) * (stop - column)
