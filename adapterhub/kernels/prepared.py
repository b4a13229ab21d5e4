"""Merges prepared once and run piece by piece: the door of engines that stream a tensor.

`prepare*` check the factors and pack them; `Prepared.run` works on any range of the tensor's
elements, so that chunks may begin and end in the middle of a row.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from adapterhub.kernels import library
from adapterhub.kernels.compiled import CompiledWork
from adapterhub.kernels.operands import (
    Array,
    Factor,
    NonFinite,
    Place,
    StoredTerm,
    check_dtype,
    check_factors,
    check_terms,
)
from adapterhub.kernels.reference import ReferenceWork

Bytes = bytes | bytearray | memoryview | Array


class Work(Protocol):
    """Arithmetic on a range of elements; see `compiled.CompiledWork`."""

    def run(self, source: Array, target: Array, first: int) -> Place | None: ...


@dataclass(frozen=True, eq=False)
class Prepared:
    """A merge into one tensor, ready to run on its parts from any number of threads at once.

    `size`: elements of the tensor. `in_dtype`, `out_dtype`: what is read and written, float32,
    float16 or bfloat16. `logical_shape`: the shape in whose terms NonFinite tells places.
    """

    size: int
    in_dtype: np.dtype[Any]
    out_dtype: np.dtype[Any]
    logical_shape: tuple[int, ...]
    transposed: bool
    work: Work

    def run(self, source: Bytes, target: Bytes, first_element: int = 0) -> None:
        """Merge the elements `first_element …` whose little-endian bytes are `source`.

        `source`, `target`: buffers or C-order arrays; so many elements as `source` holds are
        written to `target`, which must have exactly the room for them, and be either apart from
        `source` or, where both dtypes are equally large, the same memory. Works in the default
        float mode and without the GIL. Raises NonFinite with the first place of a bad weight in
        this range, else of a bad result, and the target is then not to be used; ValueError.
        """
        weights = _elements(source, self.in_dtype, "source")
        merged = _elements(target, self.out_dtype, "target")
        self._check(weights, merged, first_element)
        fault = self.work.run(weights, merged, first_element) if weights.size else None
        if fault is not None:
            raise NonFinite(fault[0], self._logical_index(fault[1]))

    def _check(self, weights: Array, merged: Array, first: int) -> None:
        if weights.size != merged.size:
            raise ValueError(f"source has {weights.size} elements, target {merged.size}")
        if first < 0 or first + weights.size > self.size:
            raise ValueError(
                f"elements {first} to {first + weights.size} of a tensor of {self.size}"
            )
        if not merged.flags.writeable:
            raise ValueError("target is read-only")
        same = weights.ctypes.data == merged.ctypes.data and weights.nbytes == merged.nbytes
        if not same and np.may_share_memory(weights, merged):
            raise ValueError("source and target overlap")

    def _logical_index(self, flat: int) -> tuple[int, ...]:
        stored = self.logical_shape[::-1] if self.transposed else self.logical_shape
        index = tuple(int(i) for i in np.unravel_index(flat, stored))
        return index[::-1] if self.transposed else index


def _elements(buffer: Bytes, dtype: np.dtype[Any], role: str) -> Array:
    """The buffer as a 1-D array of `dtype`, without copying."""
    if isinstance(buffer, np.ndarray):
        if not buffer.flags.c_contiguous:
            raise ValueError(f"{role} must be contiguous")
        flat = buffer.reshape(-1).view(np.uint8)
    else:
        flat = np.frombuffer(buffer, np.uint8) if len(buffer) else np.empty(0, np.uint8)
    if flat.size % dtype.itemsize:
        raise ValueError(f"{role} has {flat.size} bytes, no whole number of {dtype}")
    return flat.view(dtype)


def prepare(
    shape: tuple[int, int],
    factors: Sequence[Factor],
    in_dtype: np.dtype[Any],
    out_dtype: np.dtype[Any] | None = None,
    *,
    transposed: bool = False,
) -> Prepared:
    """`W + Σ scale · b @ a` by the formula of DESIGN §4, on a weight of `shape` (out, in).

    `transposed`: the bytes are those of (in, out) in C order, as Conv1D and Embedding store them.
    Without factors the weight is only rounded to `out_dtype` (default: `in_dtype`). The arrays of
    the factors must not change afterwards: they may be kept instead of copied.
    Raises NonFinite for factors, ValueError and TypeError for what does not fit.
    """
    dtypes = _dtypes(in_dtype, out_dtype)
    check_factors(shape, factors)
    stored = (shape[1], shape[0]) if transposed else (shape[0], shape[1])
    terms: list[StoredTerm] = [
        (f.scale, f.a.T, f.b.T) if transposed else (f.scale, f.b, f.a) for f in factors
    ]
    return Prepared(shape[0] * shape[1], *dtypes, shape, transposed, _work(stored, dtypes, terms))


def prepare_scaled(
    size: int,
    terms: Sequence[tuple[np.float32, NDArray[np.float32]]],
    in_dtype: np.dtype[Any],
    out_dtype: np.dtype[Any] | None = None,
) -> Prepared:
    """`acc = fma(scale, bias, acc)` for each `(scale, bias)` in order, on `size` elements.

    Without terms it is a plain cast. `bias`: (size,) float32. Raises as `prepare` does.
    """
    dtypes = _dtypes(in_dtype, out_dtype)
    check_terms((size,), terms)
    stored: list[StoredTerm] = [(scale, None, bias) for scale, bias in terms]
    return Prepared(size, *dtypes, (size,), False, _work((1, size), dtypes, stored))


def _dtypes(
    in_dtype: np.dtype[Any], out_dtype: np.dtype[Any] | None
) -> tuple[np.dtype[Any], np.dtype[Any]]:
    written = in_dtype if out_dtype is None else out_dtype
    check_dtype(in_dtype)
    check_dtype(written)
    return in_dtype, written


def _work(
    shape: tuple[int, int],
    dtypes: tuple[np.dtype[Any], np.dtype[Any]],
    terms: Sequence[StoredTerm],
) -> Work:
    kernel = library.choose()
    if kernel.library is None:
        return ReferenceWork(shape, dtypes, terms)
    return CompiledWork(kernel, shape, dtypes, terms)
