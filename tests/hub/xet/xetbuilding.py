"""Xorbs and shards made by hand, so that they can be made wrong."""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import lz4.frame
import numpy as np

from adapterhub.hub.xet import hashing, shard, xorb
from adapterhub.hub.xet.xorbs import Space

BOOKEND = shard.BOOKEND + bytes(16)


def group(data: bytes) -> bytes:
    return b"".join(data[lane::4] for lane in range(4))


def chunk(data: bytes, kind: int = xorb.RAW, *, length: int | None = None) -> bytes:
    """One chunk with its header; `length` may lie."""
    stored = {
        xorb.RAW: lambda: data,
        xorb.LZ4: lambda: lz4.frame.compress(data),
        xorb.GROUPED_LZ4: lambda: lz4.frame.compress(group(data)),
    }[kind]()
    return header(len(stored), kind, len(data) if length is None else length) + stored


def header(stored: int, kind: int, length: int) -> bytes:
    return b"\0" + stored.to_bytes(3, "little") + bytes([kind]) + length.to_bytes(3, "little")


@dataclass(frozen=True)
class Made:
    """A xorb of these chunks. `body` is what a client sends."""

    chunks: tuple[bytes, ...]
    kinds: tuple[int, ...]

    @property
    def body(self) -> bytes:
        return b"".join(map(chunk, self.chunks, self.kinds))

    @cached_property
    def pairs(self) -> list[tuple[bytes, int]]:
        return [(hashing.chunk_hash(each), len(each)) for each in self.chunks]

    @cached_property
    def digest(self) -> bytes:
        return hashing.xorb_hash(self.pairs)

    @property
    def hash(self) -> str:
        return hashing.to_hex(self.digest)


def made(*chunks: bytes) -> Made:
    """Of these chunks, in all three kinds in turn."""
    return Made(chunks, tuple(index % 3 for index in range(len(chunks))))


def some(seed: int, *lengths: int) -> Made:
    """Of random chunks, half of them compressible."""
    rng = np.random.default_rng(seed)
    return made(
        *(
            rng.bytes(n) if index % 2 else rng.integers(0, 4, n, np.uint8).tobytes()
            for index, n in enumerate(lengths)
        )
    )


def send(space: Space, each: Made, *, piece: int = 1000) -> bool:
    with space.receiving(each.hash) as receiving:
        for at in range(0, len(each.body), piece):
            receiving.feed(each.body[at : at + piece])
        return receiving.finish()


@dataclass
class FileEntry:
    """A file of a shard: (xorb, start, end) per term. What is set says something else."""

    terms: Sequence[tuple[Made, int, int]]
    hash: bytes | None = None
    sha256: bytes | None = None
    sizes: Sequence[int] | None = None
    ranges: Sequence[bytes] | None = None
    flags: int = shard.WITH_VERIFICATION | shard.WITH_SHA256

    @property
    def content(self) -> bytes:
        return b"".join(b"".join(x.chunks[start:end]) for x, start, end in self.terms)

    @property
    def digest(self) -> str:
        return f"sha256:{hashlib.sha256(self.content).hexdigest()}"

    def records(self) -> bytes:
        pairs = [pair for x, start, end in self.terms for pair in x.pairs[start:end]]
        own = self.hash if self.hash is not None else hashing.file_hash(pairs)
        out = [struct.pack("<32sIIQ", own, self.flags, len(self.terms), 0)]
        for index, (x, start, end) in enumerate(self.terms):
            size = sum(map(len, x.chunks[start:end])) if not self.sizes else self.sizes[index]
            out.append(struct.pack("<32sIIII", x.digest, 0, size, start, end))
        if self.flags & shard.WITH_VERIFICATION:
            out += [self._range(index) + bytes(16) for index in range(len(self.terms))]
        if self.flags & shard.WITH_SHA256:
            sha256 = self.sha256 or hashlib.sha256(self.content).digest()
            out.append(hashing.from_hex(sha256.hex()) + bytes(16))
        return b"".join(out)

    def _range(self, index: int) -> bytes:
        if self.ranges is not None:
            return self.ranges[index]
        x, start, end = self.terms[index]
        return hashing.range_hash(b"".join(digest for digest, _ in x.pairs[start:end]))


def shard_of(*files: FileEntry, xorbs: Sequence[Made] = ()) -> bytes:
    out = [shard.MAGIC, struct.pack("<QQ", 2, 0)]
    out += [each.records() for each in files] + [BOOKEND]
    for each in xorbs:
        size = sum(map(len, each.chunks))
        fields = (each.digest, 0, len(each.chunks), size, len(each.body))
        out.append(struct.pack("<32sIIII", *fields))
        at = 0
        for digest, length in each.pairs:
            out.append(struct.pack("<32sIIQ", digest, at, length, 0))
            at += length
    return b"".join([*out, BOOKEND])


def whole(*xorbs: Made) -> FileEntry:
    return FileEntry([(each, 0, len(each.chunks)) for each in xorbs])


def names(folder: Path) -> list[str]:
    return sorted(each.name for each in folder.iterdir())
