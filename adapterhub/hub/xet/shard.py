"""A shard as it is uploaded: which chunk ranges of which xorbs make up which files.

Records of 48 bytes, little-endian:

    header      magic 32 bytes, version u64 (2), size of the footer u64 (0 in uploads, or 200)
    files       per file: hash 32, flags u32, number of terms u32, 8 unused
                  per term: xorb 32, flags u32, unpacked bytes u32, first chunk u32, end chunk u32
                  flag 31, per term: hash of its chunk hashes 32, 16 unused
                  flag 30: sha256 of the file 32 (in the byte order of Xet's hexadecimal), 16 unused
                one record that starts with 32 bytes 0xff
    xorbs       per xorb: hash 32, flags u32, number of chunks u32, bytes u32, bytes stored u32
                  per chunk: hash 32, start u32, bytes u32, 8 unused
                one record that starts with 32 bytes 0xff

Of the xorbs only the structure is checked: what the client says of them is not needed, since every
one was seen when it came.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from adapterhub.errors import AdapterHubError, IntegrityError, NotSupported
from adapterhub.hub.xet import hashing

RECORD = 48
MAX_SHARD_BYTES = 64 * 1024 * 1024
MAGIC = b"HFRepoMetaData\0" + bytes.fromhex("556967456a7b815783a5bdd95ccdd14aa9")
VERSION, FOOTER_VERSION = 2, 1
FOOTER_BYTES = 200
BOOKEND = b"\xff" * hashing.HASH_BYTES
WITH_VERIFICATION, WITH_SHA256 = 1 << 31, 1 << 30
TERM = np.dtype(
    [("xorb", "V32"), ("flags", "<u4"), ("bytes", "<u4"), ("start", "<u4"), ("end", "<u4")]
)
RANGE = np.dtype([("hash", "V32"), ("unused", "V16")])
ENTRY = np.dtype([("hash", "V32"), ("start", "<u4"), ("length", "<u4"), ("unused", "V8")])
_HEAD = struct.Struct("<32sIIII")
_AGAIN = "repeat the upload with an unmodified client"

Records = np.ndarray[tuple[int], np.dtype[np.void]]


@dataclass(frozen=True)
class File:
    """One file. `terms`: rows of TERM; `ranges`: as many hashes, or None; `sha256`: hex or None."""

    hash: bytes
    terms: Records
    ranges: Records | None
    sha256: str | None

    @property
    def size(self) -> int:
        """Bytes, as the terms claim."""
        return sum(self.terms["bytes"].tolist())

    @property
    def name(self) -> str:
        """How messages call it."""
        return f"file {hashing.to_hex(self.hash)}"


@dataclass(frozen=True)
class Shard:
    """A shard whose structure was checked; files are read from its bytes when asked."""

    data: bytes

    def files(self) -> Iterator[File]:
        cursor = _Cursor(self.data, RECORD)
        while (head := cursor.head("file")) is not None:
            yield _file(cursor, head)


def parse(data: bytes) -> Shard:
    """Walks the whole structure; holds no more than `data` itself.

    Raises NotSupported for unknown versions and flags, IntegrityError for what is cut off, too
    large, or contradicts itself.
    """
    if len(data) > MAX_SHARD_BYTES:
        raise _bad(f"the shard has {len(data)} bytes; {MAX_SHARD_BYTES} are allowed")
    footer = _check_header(data)
    cursor = _Cursor(data[: len(data) - footer] if footer else data, RECORD)
    _walk_files(cursor)
    while (head := cursor.head("xorb")) is not None:
        _check_extent(head, cursor.take(head[2], ENTRY, "chunks of a xorb"))
    if cursor.at != len(data) - footer and not footer:  # lookup tables stand before a footer
        raise _bad(f"{len(data) - cursor.at} bytes follow the end of the shard")
    return Shard(data)


def _check_header(data: bytes) -> int:
    """Bytes of the footer."""
    if len(data) < RECORD:
        raise _bad(f"the shard has {len(data)} bytes; its header alone has {RECORD}")
    if data[:32] != MAGIC:
        raise _bad("this is no shard: it does not start with the magic bytes of one")
    version, footer = struct.unpack_from("<QQ", data, 32)
    if version != VERSION:
        raise NotSupported(f"the shard has version {version}; known is {VERSION}", remedy=_AGAIN)
    if footer not in (0, FOOTER_BYTES) or footer + RECORD > len(data):
        raise _bad(f"the shard claims a footer of {footer} bytes; 0 or {FOOTER_BYTES} expected")
    if footer:
        (found,) = struct.unpack_from("<Q", data, len(data) - footer)
        if found != FOOTER_VERSION:
            raise NotSupported(f"the shard's footer has version {found}; known is 1", remedy=_AGAIN)
    return int(footer)


def _walk_files(cursor: _Cursor) -> None:
    count = verified = 0
    while (head := cursor.head("file")) is not None:
        verified += _file(cursor, head).ranges is not None
        count += 1
    if verified not in (0, count):
        raise _bad(f"{verified} of {count} files have verification entries; all or none expected")


def _file(cursor: _Cursor, head: tuple[bytes, int, int, int, int]) -> File:
    digest, flags, count = head[:3]
    name = f"file {hashing.to_hex(digest)}"
    if flags & ~(WITH_VERIFICATION | WITH_SHA256):
        raise NotSupported(f"{name} has unknown flags 0x{flags:08x}", remedy=_AGAIN)
    terms = cursor.take(count, TERM, f"terms of {name}")
    _check_terms(terms, name)
    verified = flags & WITH_VERIFICATION
    ranges = cursor.take(count, RANGE, f"verification entries of {name}") if verified else None
    sha256 = None
    if flags & WITH_SHA256:
        sha256 = hashing.to_hex(bytes(cursor.take(1, RANGE, f"sha256 of {name}")["hash"][0]))
    return File(digest, terms, ranges, sha256)


def _check_terms(terms: Records, name: str) -> None:
    wrong: Any = np.flatnonzero((terms["start"] >= terms["end"]) | (terms["bytes"] == 0))
    if len(wrong):
        term = terms[wrong[0]]
        raise _bad(
            f"term {wrong[0]} of {name} takes chunks {term['start']} to {term['end']} of a xorb, "
            f"{term['bytes']} bytes; at least one chunk and one byte expected"
        )
    flagged: Any = np.flatnonzero(terms["flags"])
    if len(flagged):
        found = int(terms["flags"][flagged[0]])
        raise NotSupported(
            f"term {flagged[0]} of {name} has unknown flags 0x{found:08x}", remedy=_AGAIN
        )


def _check_extent(head: tuple[bytes, int, int, int, int], chunks: Records) -> None:
    """The chunks of a xorb follow each other without a gap and fill what it claims."""
    lengths = chunks["length"].astype(np.uint64)
    ends = np.cumsum(lengths)
    total = int(ends[-1]) if len(ends) else 0
    if total != head[3] or (chunks["start"] != ends - lengths).any():
        raise _bad(
            f"the shard says that xorb {hashing.to_hex(head[0])} has {head[3]} bytes; "
            f"its {len(chunks)} chunks have {total}, or do not follow each other"
        )


@dataclass
class _Cursor:
    data: bytes
    at: int

    def take(self, count: int, dtype: np.dtype[np.void], what: str) -> Records:
        """`count` records, a view. Raises IntegrityError before anything is made of them."""
        room = (len(self.data) - self.at) // RECORD
        if count > room:
            raise _bad(f"the shard is cut off: {count} {what} claimed, {room} records left")
        records: Records = np.frombuffer(self.data, dtype, count, self.at)
        self.at += count * RECORD
        return records

    def head(self, what: str) -> tuple[bytes, int, int, int, int] | None:
        """The header record of the next block; None at the end of the section."""
        if self.at + RECORD > len(self.data):
            raise _bad(f"the shard is cut off: no end of its {what} section")
        fields = _HEAD.unpack_from(self.data, self.at)
        self.at += RECORD
        return None if fields[0] == BOOKEND else fields


def _bad(message: str) -> AdapterHubError:
    return IntegrityError(message, remedy=_AGAIN)
