"""The plan of one output file by byte ranges: copy these from the base, or compute those. Pure."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from adapterhub.digest import CHUNK_BYTES
from adapterhub.merging.work import MergePlan, Term, Work
from adapterhub.registry.windows import HELD_BYTES, Window
from adapterhub.tensorfile import DTYPES, FileTensor, ShardLayout

# Long enough that the calls do not count, short enough to keep all workers busy to the end.
COPY_BYTES = 32 * 1024 * 1024
_OVERHEAD_BYTES = 100 * 1024 * 1024  # the interpreter, numpy and the plan itself


@dataclass(frozen=True, slots=True)
class Copy:
    """`nbytes` bytes of the base's file, to be placed at `target` of the output file."""

    target: int
    path: Path
    offset: int
    nbytes: int


@dataclass(frozen=True, slots=True)
class Compute:
    """Bytes `start …` of one output tensor, to be placed at `target`: one chunk of its digest."""

    target: int
    work: Work
    start: int
    nbytes: int


Range = Copy | Compute


def ranges(shard: ShardLayout, works: Mapping[str, Work]) -> Iterator[Range]:
    """What to do for every byte of an output file behind its header, in their order.

    Neighbours that are neighbours in the base's file too are copied as one, up to COPY_BYTES.
    """
    run: Copy | None = None
    for spec in shard.specs:
        work, target = works[spec.name], shard.offsets[spec.name]
        if not work.is_copy:
            if run:
                yield from _pieces(run)
            run = None
            yield from _chunks(work, target, spec.nbytes)
            continue
        value = _stored(work)
        if run and (run.path, run.offset + run.nbytes) == (value.path, value.offset):
            run = Copy(run.target, run.path, run.offset, run.nbytes + value.nbytes)
        else:
            if run:
                yield from _pieces(run)
            run = Copy(target, value.path, value.offset, value.nbytes)
    if run:
        yield from _pieces(run)


def _stored(work: Work) -> FileTensor:
    if not isinstance(work.value, FileTensor):
        raise TypeError(f"{work.name} is to be copied and is in no file")
    return work.value


def _pieces(run: Copy) -> Iterator[Copy]:
    for done in range(0, run.nbytes, COPY_BYTES):
        nbytes = min(COPY_BYTES, run.nbytes - done)
        yield Copy(run.target + done, run.path, run.offset + done, nbytes)


def _chunks(work: Work, target: int, nbytes: int) -> Iterator[Compute]:
    """Also of an empty tensor there is one, for its digest."""
    for start in range(0, max(nbytes, 1), CHUNK_BYTES):
        yield Compute(target + start, work, start, min(CHUNK_BYTES, nbytes - start))


def listing(plan: MergePlan) -> list[dict[str, Any]]:
    """Every byte range of the output as plain data: `copy` from a file, or `merge` a tensor."""
    found: list[dict[str, Any]] = []
    for shard in plan.shards:
        for item in ranges(shard, plan.works):
            said = _said(shard, item)
            last = found[-1] if found else {}
            if said["do"] != "copy" and last.get("tensor") == said["tensor"]:
                last["bytes"] += said["bytes"]
            else:
                found.append(said)
    return found


def _said(shard: ShardLayout, item: Range) -> dict[str, Any]:
    place = {"file": shard.filename, "start": item.target, "bytes": item.nbytes}
    if isinstance(item, Copy):
        return place | {"do": "copy", "from": item.path.name, "from_start": item.offset}
    return place | {"do": item.work.action, "tensor": item.work.name}


def memory(plan: MergePlan, threads: int) -> int:
    """About how many bytes running the plan takes, whatever the size of the model."""
    chunk = 3 * CHUNK_BYTES  # read, written, and fp32 in between
    factors = sorted((_held(work) for work in plan.works.values()), reverse=True)
    terms = [term for work in plan.works.values() for term in work.terms]
    held = HELD_BYTES if any(isinstance(term.b, Window) for term in terms) else 0
    # Read and packed; one tensor is being worked on while the next is prepared.
    return _OVERHEAD_BYTES + threads * chunk + 2 * sum(factors[:2]) + held


def _held(work: Work) -> int:
    """Bytes that are held while it is computed: factors, and a matrix that is changed as a whole.

    What a method needs beside its result is not known here; most need as much again.
    """
    whole = max((slab.size for slab in work.slabs if slab.change is not None), default=0)
    return factor_bytes(work.terms) + 2 * 4 * whole


def factor_bytes(terms: Sequence[Term]) -> int:
    """Size of their factors in fp32."""
    tensors = [tensor for term in terms for tensor in (term.a, term.b) if tensor is not None]
    return sum(4 * math.prod(tensor.shape) for tensor in tensors)


def item_bytes(dtype: str) -> int:
    """Size of an element; 1 for dtypes that are only ever taken as bytes."""
    return DTYPES[dtype].itemsize if dtype in DTYPES else 1
