"""The directory of a zip archive, and members that are stored as they are. Nothing is unpacked.

torch.save and numpy.savez store their members; one that is compressed is listed and never read, so
that a small file cannot become more than memory holds.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator
from dataclasses import dataclass

MAX_MEMBERS = 20_000
MEMBER_BYTES = 400  # of the directory, for each
STORED = 0
_END, _END64, _LOCATOR64, _ENTRY, _LOCAL = (
    b"PK\x05\x06",
    b"PK\x06\x06",
    b"PK\x06\x07",
    b"PK\x01\x02",
    b"PK\x03\x04",
)
_LARGE32, _LARGE16, _EXTRA64 = 0xFFFFFFFF, 0xFFFF, 1


@dataclass(frozen=True)
class Member:
    """`size` and `packed` in bytes; `offset` is that of its local header."""

    name: str
    method: int
    packed: int
    size: int
    offset: int


def members(fd: int, most: int = MAX_MEMBERS) -> list[Member]:
    """All members, as the archive's directory claims. Raises ValueError, saying what is wrong."""
    size = os.fstat(fd).st_size
    count, length, start = _directory(fd, size)
    if count > most or length > most * MEMBER_BYTES:
        raise ValueError(f"claims {count} members in a directory of {length} bytes")
    if start + length > size:
        raise ValueError("its directory lies beyond its end")
    found = list(_entries(os.pread(fd, length, start)))
    if len(found) != count:
        raise ValueError(f"claims {count} members and lists {len(found)}")
    return found


def stored(fd: int, member: Member, limit: int) -> bytes:
    """The first `limit` bytes of a member. Raises ValueError."""
    if member.method != STORED or member.packed != member.size:
        raise ValueError(f"{member.name[:80]!a} is compressed, and is not unpacked")
    end = os.fstat(fd).st_size
    head = os.pread(fd, 30, min(member.offset, end))
    if len(head) < 30 or head[:4] != _LOCAL:
        raise ValueError(f"{member.name[:80]!a} is not where the directory says")
    name, extra = struct.unpack_from("<HH", head, 26)
    return os.pread(fd, min(limit, member.size, end), member.offset + 30 + name + extra)


def _directory(fd: int, size: int) -> tuple[int, int, int]:
    """`(members, bytes, offset)` of the directory."""
    start = max(0, size - 65_557)  # the record, and the longest comment after it
    tail = os.pread(fd, size - start, start)
    at = tail.rfind(_END)
    if at < 0 or len(tail) - at < 22:
        raise ValueError("is truncated: a zip archive without its directory")
    count, length, offset = struct.unpack_from("<HII", tail, at + 10)
    if count != _LARGE16 and length != _LARGE32 and offset != _LARGE32:
        return count, length, offset
    locator = tail[max(0, at - 20) : at]
    if len(locator) < 20 or locator[:4] != _LOCATOR64:
        raise ValueError("lacks the record that a large archive needs")
    record = os.pread(fd, 56, min(struct.unpack_from("<Q", locator, 8)[0], size))
    if len(record) < 56 or record[:4] != _END64:
        raise ValueError("lacks the record that a large archive needs")
    count64, length64, offset64 = struct.unpack_from("<QQQ", record, 32)
    return count64, length64, min(offset64, size)


def _entries(directory: bytes) -> Iterator[Member]:
    at = 0
    while directory[at : at + 4] == _ENTRY and len(directory) - at >= 46:
        flags, method = struct.unpack_from("<HH", directory, at + 8)
        packed, size, names, extras, comments = struct.unpack_from("<IIHHH", directory, at + 20)
        (offset,) = struct.unpack_from("<I", directory, at + 42)
        name = directory[at + 46 : at + 46 + names]
        extra = directory[at + 46 + names : at + 46 + names + extras]
        size, packed, offset = _wide(extra, (size, packed, offset))
        at += 46 + names + extras + comments
        encoding = "utf-8" if flags & 0x800 else "cp437"
        yield Member(name.decode(encoding, "replace"), method, packed, size, offset)


def _wide(extra: bytes, values: tuple[int, int, int]) -> tuple[int, int, int]:
    """Sizes and offset, with those that need 64 bits from the extra field."""
    at, found = 0, b""
    while len(extra) - at >= 4:
        kind, length = struct.unpack_from("<HH", extra, at)
        if kind == _EXTRA64:
            found = extra[at + 4 : at + 4 + length]
            break
        at += 4 + length
    wide = []
    for value in values:
        if value == _LARGE32 and len(found) >= 8:
            (value,) = struct.unpack_from("<Q", found)
            found = found[8:]
        wide.append(value)
    return wide[0], wide[1], wide[2]
