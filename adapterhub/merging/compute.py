"""The new bytes of one chunk of an output tensor."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from typing import Protocol

import numpy as np

from adapterhub import kernels
from adapterhub.digest import CHUNK_BYTES
from adapterhub.errors import AdapterHubError, InvalidAdapter, InvalidBase, NotMergeable
from adapterhub.merging.factors import Ready, Runnable, plain, read_bytes
from adapterhub.merging.ranges import Compute, item_bytes
from adapterhub.merging.work import MergePlan, Row, Slab, Source, Term, Work
from adapterhub.tensorfile import DTYPES
from adapterhub.tensorfile.reading import buffer

DIVERGED = "this adapter diverged in training; take an earlier checkpoint"
FLOATS = ("F32", "F16", "BF16")
_PAGE = 4096


class _Scratch(threading.local):
    """Two buffers per thread, which stay in its caches from chunk to chunk."""

    def __init__(self) -> None:
        self.source = buffer(
            2 * CHUNK_BYTES + _PAGE
        ).data  # fp32 that becomes bf16 is twice as long
        self.target = buffer(CHUNK_BYTES).data


_scratch = _Scratch()


class Named(Protocol):
    """What knows the adapters by their numbers: a plan."""

    @property
    def sources(self) -> Sequence[Source]: ...


def compute(chunk: Compute, ready: Sequence[Ready], plan: MergePlan) -> memoryview:
    """The chunk's bytes, in memory that the thread's next chunk will use again.

    `ready`: the slabs that have elements in the chunk. Raises InvalidBase, InvalidAdapter and
    NotMergeable for values that are not finite, and what reading raises.
    """
    work = chunk.work
    if work.value.dtype not in FLOATS:
        return _read(work, chunk.start, chunk.nbytes)
    written, stored = item_bytes(work.dtype), item_bytes(work.value.dtype)
    first, count = chunk.start // written, chunk.nbytes // written
    source = _read(work, first * stored, count * stored)
    target = source if stored == written else _scratch.target[: chunk.nbytes]
    merge_range(work, ready, plan, source, target, first)
    return target


def merge_range(
    work: Work,
    ready: Sequence[Ready],
    plan: Named,
    source: memoryview,
    target: memoryview,
    first: int,
) -> None:
    """The elements `first …` whose bytes as stored are `source`, as they are to be, to `target`.

    Of a dtype in FLOATS. `source` and `target` may be the same memory. Raises as `compute` does,
    and `target` is then not to be used.
    """
    written, stored = item_bytes(work.dtype), item_bytes(work.value.dtype)
    count = len(source) // stored
    for runnable, origin, start, stop in _spans(work, ready, first, first + count):
        begin, end = start - first, stop - first
        try:
            runnable.run(
                source[begin * stored : end * stored],
                target[begin * written : end * written],
                start - origin,
            )
        except kernels.NonFinite as error:
            raise _explained(error, work, _slab_at(ready, start), plan) from error
    for row in work.rows:
        _replace_row(row, work, target, first)


def _read(work: Work, start: int, nbytes: int) -> memoryview:
    # The kernel copies faster where source and destination agree on the place within a page.
    place = (getattr(work.value, "offset", 0) + start) % _PAGE
    view = _scratch.source[place : place + nbytes]
    read_bytes(work.value, start, view)
    return view


def _spans(
    work: Work, ready: Sequence[Ready], first: int, last: int
) -> Iterator[tuple[Runnable, int, int, int]]:
    """`(what computes, where its elements begin, start, stop)` over the elements first … last-1."""
    at = first
    for item in ready:
        start, stop = max(first, item.slab.first), min(last, item.slab.first + item.slab.size)
        if start >= stop:
            continue
        if at < start:
            yield plain(work), 0, at, start
        yield item.kernel, item.slab.first, start, stop
        at = stop
    if at < last:
        yield plain(work), 0, at, last


def _slab_at(ready: Sequence[Ready], element: int) -> Slab | None:
    slabs = (item.slab for item in ready)
    return next((s for s in slabs if s.first <= element < s.first + s.size), None)


def _replace_row(row: Row, work: Work, target: memoryview, first: int) -> None:
    """Write the part of a row that lies in the chunk, rounded to the dtype of the result."""
    width = row.value.shape[1]
    size = item_bytes(work.dtype)
    start, stop = max(row.first, first), min(row.first + width, first + len(target) // size)
    if start >= stop:
        return
    stored = item_bytes(row.value.dtype)
    values = buffer(width * stored)
    read_bytes(row.value, row.index * width * stored, values.data)
    rounded = buffer(width * size)
    kernel = kernels.prepare_scaled(width, (), DTYPES[row.value.dtype], DTYPES[work.dtype])
    try:
        kernel.run(values, rounded)
    except kernels.NonFinite as error:
        raise InvalidAdapter(
            f"the adapter's row {row.first // width} of {work.name} is NaN or infinite at "
            f"{error.index[0]}, or does not fit {work.dtype}",
            remedy=DIVERGED,
        ) from error
    begin, end = start - row.first, stop - row.first
    target[(start - first) * size : (stop - first) * size] = rounded.data[begin * size : end * size]


# --- values that are refused ------------------------------------------------------------------


def explained(error: kernels.NonFinite, work: Work, slab: Slab, plan: Named) -> AdapterHubError:
    """The same for a fault that shows while the factors of `slab` are read."""
    return _explained(error, work, slab, plan)


def _explained(
    error: kernels.NonFinite, work: Work, slab: Slab | None, plan: Named
) -> AdapterHubError:
    """The kernel's terse fact, with the names that it does not know."""
    if error.factor is not None and slab is not None:
        return _bad_factor(error, slab.terms[error.factor], plan)
    where = _place(error.index, work, slab)
    if error.operand == "result":
        return NotMergeable(
            f"{work.name} at {where}: the result does not fit {work.dtype}",
            remedy="--dtype float32, or a smaller weight for the adapter",
        )
    if work.replaces:
        return InvalidAdapter(
            f"the adapter's {work.name} at {where} is NaN or infinite", remedy=DIVERGED
        )
    return InvalidBase(
        f"{work.stored} at {where} of the base is NaN or infinite",
        remedy="get the base anew; a merge would spread the damage",
    )


def _bad_factor(error: kernels.NonFinite, term: Term, plan: Named) -> InvalidAdapter:
    tensor = term.a if error.operand == "a" and term.a is not None else term.b
    first, *rest = error.index
    place = [first, *_unravelled(rest[0], tensor.shape[1:])] if rest else [first]
    role = {"a": "factor A", "b": "factor B"}.get(error.operand, "value")
    return InvalidAdapter(
        f"{plan.sources[term.source].name}: {term.key} has a {role} that is NaN or infinite "
        f"at {place}",
        remedy=DIVERGED,
    )


def _unravelled(index: int, shape: tuple[int, ...]) -> list[int]:
    return [int(i) for i in np.unravel_index(index, shape)]


def _place(index: tuple[int, ...], work: Work, slab: Slab | None) -> list[int]:
    """Where an element, by the formula's index in its slab, is in the tensor as stored."""
    if slab is None or len(index) != 2:
        flat = index[0] + (slab.first if slab else 0)
    else:
        row, column = index
        out, into = slab.shape
        flat = slab.first + (column * out + row if slab.transposed else row * into + column)
    return _unravelled(flat, work.shape)
