"""The header of a GGUF file: key-value pairs and what its tensors are called. No values.

    "GGUF" ‖ version u32 ‖ tensors u64 ‖ pairs u64 ‖ pairs ‖ tensor infos
    pair = key ‖ type u32 ‖ value;   info = name ‖ dimensions u32 ‖ extents u64 … ‖ type ‖ offset

Everything is little-endian; a string is its length (u64) and UTF-8. Source: the format's own
description, docs/gguf.md of ggml.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Mapping
from dataclasses import dataclass

MAGIC = b"GGUF"
MAX_PAIRS = 10_000
MAX_TENSORS = 50_000
MAX_BYTES = 64 * 1024 * 1024
MAX_STRING = 1024 * 1024
MAX_NAME = 1024
MAX_ITEMS = 600_000  # of arrays of strings: vocabularies have up to 260,000
MAX_DIMENSIONS = 8
_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q"}
_SCALARS[12] = "d"
_STRING, _ARRAY = 8, 9

Value = str | int | float | bool | None


@dataclass(frozen=True)
class GgufHeader:
    """`pairs` without arrays (None); `shapes` as numpy has them, so the extents reversed."""

    version: int
    pairs: Mapping[str, Value]
    shapes: Mapping[str, tuple[int, ...]]


def read(fd: int) -> GgufHeader:
    """Raises ValueError, saying what is wrong."""
    source = _Source(fd)
    if source.take(4) != MAGIC:
        raise ValueError("is no GGUF file")
    version = source.number("I")
    if version not in (2, 3):
        raise ValueError(f"is GGUF of version {version}, expected 2 or 3 (little-endian)")
    tensors, count = source.number("Q"), source.number("Q")
    if tensors > MAX_TENSORS or count > MAX_PAIRS:
        raise ValueError(f"claims {tensors} tensors and {count} pairs")
    pairs: dict[str, Value] = {}
    for _ in range(count):
        key = source.text(MAX_NAME)
        if key in pairs:
            raise ValueError(f"has the key {key[:80]!a} twice")
        pairs[key] = source.value(source.number("I"))
    return GgufHeader(version, pairs, _infos(source, tensors))


def _infos(source: _Source, count: int) -> dict[str, tuple[int, ...]]:
    shapes: dict[str, tuple[int, ...]] = {}
    for _ in range(count):
        name = source.text(MAX_NAME)
        dimensions = source.number("I")
        if dimensions > MAX_DIMENSIONS:
            raise ValueError(f"{name[:80]!a} claims {dimensions} dimensions")
        if name in shapes:
            raise ValueError(f"has the tensor {name[:80]!a} twice")
        extents = [source.number("Q") for _ in range(dimensions)]
        if any(extent > 2**53 for extent in extents):
            raise ValueError(f"{name[:80]!a} claims the extents {extents}")
        source.take(12)  # its type, and where its values lie
        shapes[name] = tuple(reversed(extents))
    return shapes


class _Source:
    """The file in pieces, with a limit on all of it. Raises ValueError where it ends."""

    _PIECE = 256 * 1024

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._size = os.fstat(fd).st_size
        self._piece = b""
        self._start = 0  # of the piece, in the file
        self._at = 0  # in the piece
        self._items = 0

    def take(self, count: int) -> bytes:
        if self._at + count > len(self._piece):
            self._refill(count)
        taken = self._piece[self._at : self._at + count]
        if len(taken) < count:
            raise ValueError("is cut within its header")
        self._at += count
        return taken

    def _refill(self, count: int) -> None:
        self._start += self._at
        self._at = 0
        if self._start + count > MAX_BYTES:
            raise ValueError(f"has a header of more than {MAX_BYTES} bytes")
        self._piece = os.pread(self._fd, max(count, self._PIECE), self._start)

    def skip(self, count: int) -> None:
        place = self._start + self._at + count
        if place > self._size:
            raise ValueError("is cut within its header")
        self._start, self._at, self._piece = place, 0, b""

    def number(self, code: str) -> int:
        return int(struct.unpack(f"<{code}", self.take(struct.calcsize(code)))[0])

    def text(self, limit: int) -> str:
        length = self.number("Q")
        if length > limit:
            raise ValueError(f"claims a text of {length} bytes, at most {limit} are read")
        try:
            return self.take(length).decode("utf-8")
        except UnicodeDecodeError:
            raise ValueError("holds a text that is not UTF-8") from None

    def value(self, kind: int) -> Value:
        if kind == _STRING:
            return self.text(MAX_STRING)
        if kind == _ARRAY:
            self._array()
            return None
        if kind not in _SCALARS:
            raise ValueError(f"holds a value of the unknown type {kind}")
        code = _SCALARS[kind]
        found: Value = struct.unpack(f"<{code}", self.take(struct.calcsize(f"<{code}")))[0]
        return found

    def _array(self) -> None:
        kind, count = self.number("I"), self.number("Q")
        if kind in _SCALARS:
            self.skip(count * struct.calcsize(f"<{_SCALARS[kind]}"))
            return
        self._items += count
        if kind != _STRING or self._items > MAX_ITEMS:
            raise ValueError(f"holds an array of {count} items of type {kind}")
        for _ in range(count):
            length = self.number("Q")
            if length > MAX_STRING:
                raise ValueError(f"claims a text of {length} bytes, at most {MAX_STRING} are read")
            self.take(length)
