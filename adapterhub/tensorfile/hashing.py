"""D of many tensors (see `adapterhub.digest`), on all cores.

The unit of work is a few chunks of 4 MiB, not a tensor, so that one tensor that is half the file
keeps every core busy too. Chunks that are smaller are read many at a time. Each thread reads into
one buffer that stays in its core's cache between the read and the hash; both release the
interpreter's lock.
"""

from __future__ import annotations

import hashlib
import os
import threading
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from adapterhub import digest
from adapterhub.tensorfile.ordered import in_order
from adapterhub.tensorfile.reading import buffer, fill, open_regular
from adapterhub.tensorfile.tensors import FileTensor

# Small enough to stay in cache, large enough that threads seldom meet at the interpreter's lock.
_READ_BYTES = 2 * 1024 * 1024
_PAGE = 4096
# What a job costs by itself disappears beside the time it takes to hash so much.
_JOB_BYTES = 32 * 1024 * 1024
_JOB_CHUNKS = 2048


def usable_cores() -> int:
    """Cores that this process may run on, which in a container are fewer than there are."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def tensor_digests(
    tensors: Mapping[str, FileTensor],
    *,
    threads: int | None = None,
    progress: Callable[[int], None] | None = None,
) -> dict[str, bytes]:
    """D of each tensor, 32 bytes, in the order of `tensors`.

    Neither `threads` (default: one for each usable core) nor the layout of the files changes a
    digest. `progress` is called in the caller's thread with the number of bytes hashed since its
    last call. Memory: one buffer per thread, and 32 bytes per chunk.

    Raises:
        NotFound, InvalidTensorFile: a file vanished or shrank since its header was read.
    """
    threads = threads or usable_cores()
    hashes: dict[str, list[bytes]] = {name: [] for name in tensors}
    with ThreadPoolExecutor(threads, "digest") as pool:
        for job, found in in_order(pool, _jobs(tensors, threads), _hash_job, 4 * threads):
            for chunk, value in zip(job.chunks, found, strict=True):
                hashes[chunk.name].append(value)
            if progress:
                progress(sum(chunk.length for chunk in job.chunks))
    return {name: digest.merkle(found) for name, found in hashes.items()}


class _Chunk(NamedTuple):
    name: str
    offset: int
    length: int


@dataclass(frozen=True, slots=True)
class _Job:
    """Neighbouring chunks of one file, in the order of their offsets."""

    path: Path
    chunks: list[_Chunk]


class _Scratch(threading.local):
    def __init__(self) -> None:
        self.buffer = buffer(_READ_BYTES + _PAGE).data

    def place(self, offset: int, length: int) -> memoryview:
        """Room for bytes that lie at `offset` of a file, at the same place within a page.

        Where source and destination disagree on that, the kernel copies at half the speed.
        """
        start = offset % _PAGE
        return self.buffer[start : start + length]


_scratch = _Scratch()


def _jobs(tensors: Mapping[str, FileTensor], threads: int) -> Iterator[_Job]:
    """All chunks, up to 32 MiB at a time; less where that would leave threads without work."""
    total = sum(tensor.nbytes for tensor in tensors.values())
    target = max(_READ_BYTES, min(_JOB_BYTES, total // (8 * threads)))
    chunks: list[_Chunk] = []
    path, size = Path(), 0
    for name, tensor in sorted(tensors.items(), key=lambda item: (item[1].path, item[1].offset)):
        for start, length in digest.chunks(tensor.nbytes):
            full = size + length > target or len(chunks) == _JOB_CHUNKS
            if chunks and (full or path != tensor.path):
                yield _Job(path, chunks)
                chunks, size = [], 0
            path = tensor.path
            chunks.append(_Chunk(name, tensor.offset + start, length))
            size += length
    if chunks:
        yield _Job(path, chunks)


def _hash_job(job: _Job) -> list[bytes]:
    """sha256 of each chunk; small ones are cut from the buffer, as many as it holds."""
    scratch = memoryview(b"")
    end = job.chunks[-1].offset + job.chunks[-1].length
    start = stop = 0
    found = []
    with open_regular(job.path) as fd:
        for _, offset, length in job.chunks:
            if length > _READ_BYTES:
                found.append(_hash_large(fd, offset, length, job.path))
                start = stop = 0
                continue
            if offset < start or offset + length > stop:
                start, stop = offset, min(offset + _READ_BYTES, end)
                scratch = _scratch.place(start, stop - start)
                fill(fd, scratch, start, job.path)
            piece = scratch[offset - start : offset - start + length]
            found.append(hashlib.sha256(piece).digest())
    return found


def _hash_large(fd: int, offset: int, length: int, path: Path) -> bytes:
    hasher = hashlib.sha256()
    for done in range(0, length, _READ_BYTES):
        piece = _scratch.place(offset + done, min(_READ_BYTES, length - done))
        fill(fd, piece, offset + done, path)
        hasher.update(piece)
    return hasher.digest()
