"""Xorbs and shards made by hand, as a client of Xet sends them: chunks of 64 KiB, unpacked."""

from __future__ import annotations

import hashlib
import struct
from dataclasses import dataclass

from adapterhub.hub.xet import hashing
from adapterhub.hub.xet.shard import BOOKEND, MAGIC

CHUNK = 65_536
_SHA256 = 1 << 30


@dataclass(frozen=True)
class Packed:
    """One file in one xorb, and the shard that says so."""

    data: bytes
    xorb: bytes
    hash: bytes

    @property
    def name(self) -> str:
        return hashing.to_hex(self.hash)

    def shard(self, sha256: bytes | None = None) -> bytes:
        """Of this one file. `sha256`: what it claims to be."""
        chunks = _chunks(self.data)
        claimed = sha256 or hashlib.sha256(self.data).digest()
        file = hashing.file_hash([(hashing.chunk_hash(c), len(c)) for c in chunks])
        records = [
            struct.pack("<32sQQ", MAGIC, 2, 0),
            struct.pack("<32sIIQ", file, _SHA256, 1, 0),
            struct.pack("<32sIIII", self.hash, 0, len(self.data), 0, len(chunks)),
            _swapped(claimed) + bytes(16),
            BOOKEND + bytes(16),
            struct.pack("<32sIIII", self.hash, 0, len(chunks), len(self.data), len(self.xorb)),
        ]
        start = 0
        for chunk in chunks:
            records.append(struct.pack("<32sIIQ", hashing.chunk_hash(chunk), start, len(chunk), 0))
            start += len(chunk)
        return b"".join([*records, BOOKEND + bytes(16)])


def packed(data: bytes) -> Packed:
    chunks = _chunks(data)
    parts = [bytes([0]) + _u24(len(c)) + bytes([0]) + _u24(len(c)) + c for c in chunks]
    digest = hashing.xorb_hash([(hashing.chunk_hash(c), len(c)) for c in chunks])
    return Packed(data, b"".join(parts), digest)


def _chunks(data: bytes) -> list[bytes]:
    return [data[at : at + CHUNK] for at in range(0, len(data), CHUNK)]


def _u24(number: int) -> bytes:
    return number.to_bytes(3, "little")


def _swapped(digest: bytes) -> bytes:
    return b"".join(digest[at : at + 8][::-1] for at in range(0, 32, 8))
