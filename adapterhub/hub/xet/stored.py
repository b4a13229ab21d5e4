"""One xorb as it lies on disk: checked and unpacked once, when it comes.

    chunks      their bytes, one after the other
    table       a row of `xorb.CHUNK` per chunk
    trailer     blake3 of the table 32 bytes, rows u32, `AHXORB01`

A reader trusts the table, whose hash it checks, and whoever rebuilds a file checks its sha256.
"""

from __future__ import annotations

import os
import struct
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from adapterhub.errors import IntegrityError
from adapterhub.hub.xet import hashing, xorb
from adapterhub.store import files

_TRAILER = struct.Struct("<32sI8s")
_IDENT = b"AHXORB01"


class Damaged(IntegrityError):
    """A xorb that was sound when it came."""


class Writer:
    """Writes to a temporary file that becomes `target`."""

    def __init__(self, fd: int, path: Path, target: Path) -> None:
        self._fd = fd
        self._path = path
        self._target = target

    def write(self, data: bytes | memoryview) -> None:
        files.write_all(self._fd, data, self._path)

    def publish(self, table: xorb.Table) -> bool:
        """Adds the table and gives the file its name; False where another was first."""
        rows = table.tobytes()
        self.write(rows + _TRAILER.pack(_table_hash(rows), len(table), _IDENT))
        if self._target.exists():
            return False
        files.publish(self._fd, self._path, self._target)
        return True


class Stored:
    """A xorb, for reading from any thread. `ends[i]`: bytes unpacked of the first i chunks.

    Raises FileNotFoundError, and IntegrityError where its table is damaged.
    """

    def __init__(self, digest: bytes, path: Path) -> None:
        self.name = f"xorb {hashing.to_hex(digest)}"
        self._path = path
        with path.open("rb") as file:
            self.table, size = self._read_table(file)
        self.ends: np.ndarray[tuple[int], np.dtype[np.int64]] = np.zeros(
            len(self.table) + 1, np.int64
        )
        np.cumsum(self.table["length"], out=self.ends[1:])
        if self.ends[-1] != size:
            raise self._damaged(f"it has {size} bytes, and its chunks {self.ends[-1]}")

    def _read_table(self, file: BinaryIO) -> tuple[xorb.Table, int]:
        """The table, and the bytes before it."""
        at = file.seek(0, os.SEEK_END) - _TRAILER.size
        if at < 0:
            raise self._damaged("it is too short")
        file.seek(at)
        digest, count, ident = _TRAILER.unpack(file.read(_TRAILER.size))
        length = count * xorb.CHUNK.itemsize
        if ident != _IDENT or length > at:
            raise self._damaged("its end is not that of a stored xorb")
        file.seek(at - length)
        rows = file.read(length)
        if _table_hash(rows) != digest:
            raise self._damaged("its table of chunks does not match its hash")
        return np.frombuffer(rows, xorb.CHUNK), at - length

    def hashes(self, start: int, end: int) -> bytes:
        """Of chunks `start` to `end`, one after the other."""
        found: Any = self.table["hash"][start:end]
        return bytes(found.tobytes())

    def read(self, start: int, end: int) -> bytes:
        """The bytes of chunks `start` to `end`, unchecked."""
        at, length = int(self.ends[start]), int(self.ends[end] - self.ends[start])
        with self._path.open("rb", buffering=0) as file:
            return os.pread(file.fileno(), length, at)

    def verify(self, start: int, end: int) -> None:
        """Raises IntegrityError where the disk did not keep chunks `start` to `end`."""
        for index in range(start, end):
            if hashing.chunk_hash(self.read(index, index + 1)) != bytes(self.table["hash"][index]):
                raise self._damaged(f"chunk {index} does not match its hash")

    def _damaged(self, why: str) -> Damaged:
        return Damaged(
            f"{self.name} is damaged on this hub's disk: {why}",
            remedy="repeat the upload: everything will be sent afresh",
        )


def _table_hash(rows: bytes) -> bytes:
    from blake3 import blake3

    return blake3(rows).digest()
