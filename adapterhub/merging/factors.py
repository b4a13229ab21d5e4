"""Factors read, checked and packed for the kernel: a slab of a tensor, ready to be merged into.

DoRA (Liu et al., https://arxiv.org/abs/2402.09353): row i of V = W + Σ scale·B·A becomes
m[i] / ‖V[i]‖ · V[i]. The norm is the square root, in fp64, of a sum whose order is fixed: products
of fp32 are exact in fp64; 64 lanes, of which lane l adds up the columns k ≡ l mod 64 in ascending
order, are added in halves. m/‖V‖ is rounded to fp32, its product with V to fp32 and then to the
stored dtype.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from adapterhub import kernels
from adapterhub.errors import InvalidAdapter, NotMergeable
from adapterhub.kernels.floatmode import default_float_mode
from adapterhub.merging.work import Change, Slab, Term, Work
from adapterhub.tensorfile import DTYPES, ArrayTensor, FileTensor, Tensor
from adapterhub.tensorfile.reading import buffer, fill, open_regular

LANES = 64
_BLOCK_ELEMENTS = 1 << 21
_F32 = np.dtype(np.float32)
Bytes = memoryview | NDArray[Any]


class Runnable(Protocol):
    """See `kernels.Prepared.run`; elements are counted from the start of the slab."""

    def run(self, source: Bytes, target: Bytes, first_element: int = 0) -> None: ...


@dataclass(frozen=True)
class Ready:
    """A slab whose factors are in memory. `idle`: keys of terms whose B is zero throughout."""

    slab: Slab
    kernel: Runnable
    idle: tuple[tuple[int, str], ...]


def plain(work: Work) -> Runnable:
    """For elements to which nothing is added: a cast, or a copy that refuses NaN and inf."""
    return kernels.prepare_scaled(work.size, (), DTYPES[work.value.dtype], DTYPES[work.dtype])


@default_float_mode()
def make_ready(work: Work, slab: Slab) -> Ready:
    """Read and pack the factors of a slab. Raises kernels.NonFinite and what reading raises."""
    stored, written = DTYPES[work.value.dtype], DTYPES[work.dtype]
    if slab.change is not None:
        return Ready(slab, Changed(work, slab, slab.change), ())
    if all(term.a is None for term in slab.terms):
        terms = [(term.scale, _as_stored(slab, term)) for term in slab.terms]
        return Ready(slab, kernels.prepare_scaled(slab.size, terms, stored, written), ())
    if any(term.a is None for term in slab.terms):
        return Ready(slab, Chain(work, slab), ())
    factors = [_factor(term) for term in slab.terms]
    idle = tuple(
        (term.source, term.key)
        for term, factor in zip(slab.terms, factors, strict=True)
        if not factor.b.any()
    )
    shape = (slab.shape[0], slab.shape[1])
    if slab.magnitude is None:
        merge = kernels.prepare(shape, factors, stored, written, transposed=slab.transposed)
        return Ready(slab, merge, idle)
    directions = kernels.prepare(shape, factors, stored, _F32, transposed=slab.transposed)
    return Ready(slab, Dora(work, slab, directions, slab.magnitude), ())


def _factor(term: Term) -> kernels.Factor:
    if term.a is None:
        raise NotMergeable(f"{term.key}: a bias cannot be added to a matrix")
    return kernels.Factor(a=_flat(fp32(term.a)), b=_flat(fp32(term.b)), scale=term.scale)


def _as_stored(slab: Slab, term: Term) -> NDArray[np.float32]:
    """The values to add, flat, in the order of the tensor's elements."""
    values = fp32(term.b).reshape(slab.shape)
    return np.ascontiguousarray(values.T if slab.transposed else values).reshape(-1)


def fp32(tensor: Tensor) -> NDArray[np.float32]:
    return tensor.read().astype(np.float32, copy=False)


def _flat(array: NDArray[Any]) -> NDArray[Any]:
    """(n, …) → (n, product of the rest), also where one of them is 0."""
    return array.reshape(array.shape[0], math.prod(array.shape[1:]))


def read_bytes(tensor: Tensor, start: int, target: memoryview) -> None:
    """Fill `target` with the tensor's bytes from `start` on. Raises what reading raises."""
    if isinstance(tensor, FileTensor):
        with open_regular(tensor.path) as fd:
            fill(fd, target, tensor.offset + start, tensor.path)
        return
    array = np.ascontiguousarray(_array(tensor))
    target[:] = array.reshape(-1).view(np.uint8).data[start : start + len(target)]


def _array(tensor: Tensor) -> NDArray[Any]:
    """Its own memory where that has the bytes of the file, so that no copy is made per chunk."""
    if isinstance(tensor, ArrayTensor) and tensor.array.dtype == DTYPES[tensor.dtype]:
        return tensor.array
    return tensor.read()


class Chain:
    """Terms with factors and terms without, in their order; the sum stays in fp32 in between."""

    def __init__(self, work: Work, slab: Slab) -> None:
        dtype = DTYPES[work.value.dtype]
        self._links = []
        for term in slab.terms:
            self._links.append(self._link(slab, term, dtype))
            dtype = _F32
        self._links.append(kernels.prepare_scaled(slab.size, (), _F32, DTYPES[work.dtype]))
        self._itemsize = DTYPES[work.value.dtype].itemsize

    @staticmethod
    def _link(slab: Slab, term: Term, dtype: np.dtype[Any]) -> kernels.Prepared:
        if term.a is None:
            terms = [(term.scale, _as_stored(slab, term))]
            return kernels.prepare_scaled(slab.size, terms, dtype, _F32)
        shape = (slab.shape[0], slab.shape[1])
        return kernels.prepare(shape, [_factor(term)], dtype, _F32, transposed=slab.transposed)

    def run(self, source: Bytes, target: Bytes, first_element: int = 0) -> None:
        size = len(source) // self._itemsize
        for link in self._links[:-1]:
            merged = np.empty(size, np.float32)
            link.run(source, merged, first_element)
            source = merged
        self._links[-1].run(source, target, first_element)


class Changed:
    """What a method makes of the whole matrix, which is held until the slab is done."""

    def __init__(self, work: Work, slab: Slab, change: Change) -> None:
        stored = DTYPES[work.value.dtype]
        raw = buffer(slab.size * stored.itemsize)
        read_bytes(work.value, slab.first * stored.itemsize, raw.data)
        given = np.empty(slab.size, np.float32)
        # refuses what is not finite, by its place
        kernels.prepare_scaled(slab.size, (), stored, _F32).run(raw, given)
        shape = slab.shape[::-1] if slab.transposed else slab.shape
        weight = given.reshape(shape)
        made = self._changed(change, np.ascontiguousarray(weight.T) if slab.transposed else weight)
        made = np.asarray(made, np.float32).reshape(slab.shape)
        self._made = np.ascontiguousarray(made.T if slab.transposed else made).reshape(-1)
        self._rounding = kernels.prepare_scaled(slab.size, (), _F32, DTYPES[work.dtype])
        self._itemsize = stored.itemsize

    @staticmethod
    def _changed(change: Change, weight: NDArray[np.float32]) -> NDArray[np.float32]:
        """What is not finite in the end, `run` refuses."""
        try:
            with default_float_mode(), np.errstate(all="ignore"):
                return change.apply(weight)
        except kernels.NonFinite as error:
            raise InvalidAdapter(
                f"{change.key}: what the adapter's values come to is NaN or infinite",
                remedy="this adapter diverged in training; take an earlier checkpoint",
            ) from error

    def run(self, source: Bytes, target: Bytes, first_element: int = 0) -> None:
        size = len(source) // self._itemsize
        try:
            values = self._made[first_element : first_element + size]
            self._rounding.run(values, target, first_element)
        except kernels.NonFinite as error:
            raise kernels.NonFinite("result", error.index) from None


class Dora:
    """W' = m / ‖V‖ · V. `directions` computes V in fp32."""

    def __init__(
        self, work: Work, slab: Slab, directions: kernels.Prepared, magnitude: Tensor
    ) -> None:
        self._slab = slab
        self._directions = directions
        self._rounding = kernels.prepare_scaled(slab.size, (), _F32, DTYPES[work.dtype])
        self._gains = self._gains_of(work, fp32(magnitude).reshape(-1))

    def run(self, source: Bytes, target: Bytes, first_element: int = 0) -> None:
        size = len(source) // self._directions.in_dtype.itemsize
        merged = np.empty(size, np.float32)
        self._directions.run(source, merged, first_element)
        with default_float_mode():
            np.multiply(merged, self._gains_from(first_element, size), out=merged)
        try:
            self._rounding.run(merged, target, first_element)
        except kernels.NonFinite as error:  # m/‖V‖ or its product overflowed
            raise kernels.NonFinite("result", self._logical(error.index[0])) from None

    def _logical(self, flat: int) -> tuple[int, ...]:
        out, into = self._slab.shape
        if self._slab.transposed:
            return flat % out, flat // out
        return flat // into, flat % into

    def _gains_from(self, first: int, count: int) -> NDArray[np.float32]:
        """The gain of each of these elements."""
        out, into = self._slab.shape
        if self._slab.transposed:
            shift = first % out
            return np.resize(np.roll(self._gains, -shift), count)
        rows = np.arange(first // into, (first + count - 1) // into + 1)
        return np.repeat(self._gains[rows], into)[first % into :][:count]

    def _gains_of(self, work: Work, magnitude: NDArray[np.float32]) -> NDArray[np.float32]:
        norms = np.sqrt(_folded(self._squares(work)))
        if not norms.all():
            raise NotMergeable(
                f"{work.name}: row {int(norms.argmin())} of the merged weight is zero, "
                "and DoRA has no direction to scale there",
                remedy="check that this is the base that the adapter was trained on",
            )
        with np.errstate(over="ignore"):
            return (magnitude.astype(np.float64) / norms).astype(np.float32)

    def _squares(self, work: Work) -> NDArray[np.float64]:
        """(out, LANES): the sums of the squares of V's elements by lane."""
        out, into = self._slab.shape
        lanes = np.zeros((out, LANES), np.float64)
        if self._slab.transposed:
            for row, block in self._blocks(work, out, into):
                for offset, squares in enumerate(block):
                    lanes[:, (row + offset) % LANES] += squares
            return lanes
        for row, block in self._blocks(work, into, out):
            mine = lanes[row : row + len(block)]
            for start in range(0, into, LANES):
                columns = block[:, start : start + LANES]
                mine[:, : columns.shape[1]] += columns
        return lanes

    def _blocks(
        self, work: Work, width: int, height: int
    ) -> Iterator[tuple[int, NDArray[np.float64]]]:
        """Squares of V as stored, some whole rows at a time, and the number of the first."""
        itemsize = self._directions.in_dtype.itemsize
        step = max(1, _BLOCK_ELEMENTS // max(1, width))
        for row in range(0, height, step):
            rows = min(step, height - row)
            source = buffer(rows * width * itemsize)
            read_bytes(work.value, (self._slab.first + row * width) * itemsize, source.data)
            merged = np.empty(rows * width, np.float32)
            self._directions.run(source, merged, row * width)
            wide = merged.astype(np.float64).reshape(rows, width)
            yield row, wide * wide


def _folded(lanes: NDArray[np.float64]) -> NDArray[np.float64]:
    while lanes.shape[1] > 1:
        half = lanes.shape[1] // 2
        lanes = lanes[:, :half] + lanes[:, half:]
    return lanes[:, 0]
