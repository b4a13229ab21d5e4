"""A xorb as it is uploaded: chunks, each behind a header of eight bytes, and perhaps a footer.

    header = version u8 (0), stored length u24, type u8, length u24      little-endian, in bytes
    type 0: the bytes; 1: one LZ4 frame; 2: one LZ4 frame over the bytes grouped by their position
    in each four (all firsts, then all seconds …; the first groups take what four does not divide)

A footer starts with `XETBLOB`, its version and the xorb's hash, and ends with its own length as
u32; today's clients send none, and nothing else in it is used.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from adapterhub.errors import AdapterHubError, IntegrityError, NotSupported
from adapterhub.hub.xet import hashing

HEADER_BYTES = 8
MAX_CHUNK_BYTES = 128 * 1024
MAX_STORED_BYTES = 2 * MAX_CHUNK_BYTES  # of one chunk
MAX_CHUNKS = 8192
MAX_FOOTER_BYTES = 1024 * 1024
# Clients count the chunks' own bytes, so headers and footer come on top of the 64 MiB.
MAX_XORB_BYTES = 64 * 1024 * 1024 + MAX_CHUNKS * HEADER_BYTES + MAX_FOOTER_BYTES
# Clients stop at 64 MiB here too; the document does not say that they must.
MAX_UNPACKED_BYTES = 128 * 1024 * 1024
FOOTER_IDENT = b"XETBLOB"
FOOTER_VERSIONS = (0, 1)
RAW, LZ4, GROUPED_LZ4 = 0, 1, 2
CHUNK = np.dtype([("hash", "V32"), ("length", "<u4")])
"""One row per chunk: its hash, and how many bytes it has when unpacked."""

Table = np.ndarray[tuple[int], np.dtype[np.void]]
_AGAIN = "repeat the upload; if it fails again, the client writes xorbs that this server cannot use"


@dataclass(frozen=True)
class Header:
    """Of one chunk; `stored` and `length` in bytes."""

    stored: int
    kind: int
    length: int


def read_header(data: bytes | memoryview, where: str) -> Header:
    """Raises NotSupported for an unknown version or type, IntegrityError for sizes out of range."""
    version, kind = data[0], data[4]
    if version != 0:
        raise NotSupported(f"{where} has version {version}; this server reads 0", remedy=_AGAIN)
    if kind not in (RAW, LZ4, GROUPED_LZ4):
        raise NotSupported(f"{where} has compression type {kind}; known are 0, 1, 2", remedy=_AGAIN)
    stored = int.from_bytes(data[1:4], "little")
    length = int.from_bytes(data[5:8], "little")
    if not 1 <= length <= MAX_CHUNK_BYTES:
        raise _bad(f"{where} claims {length} bytes; 1 to {MAX_CHUNK_BYTES} are allowed")
    if not 1 <= stored <= MAX_STORED_BYTES:
        raise _bad(f"{where} claims {stored} stored bytes; 1 to {MAX_STORED_BYTES} are allowed")
    if kind == RAW and stored != length:
        raise _bad(f"{where} is stored raw in {stored} bytes, but claims {length}")
    return Header(stored, kind, length)


def unpack(header: Header, data: memoryview, where: str) -> bytes | memoryview:
    """The chunk's bytes, exactly `header.length` of them, perhaps `data`. Raises IntegrityError."""
    if header.kind == RAW:
        return data
    plain = _decompress(data, header.length, where)
    return plain if header.kind == LZ4 else ungroup(plain)


def _decompress(data: memoryview, length: int, where: str) -> bytes:
    """Never makes more than one byte beyond `length`, whatever the frame claims."""
    import lz4.frame

    context = lz4.frame.create_decompression_context()
    try:
        done = lz4.frame.decompress_chunk(context, data, max_length=length + 1)
    except (RuntimeError, EOFError, ValueError, MemoryError) as error:
        raise _bad(f"{where} is not an LZ4 frame: {error}") from error
    plain: bytes = done[0]
    used, whole = done[1:]
    if len(plain) > length:
        raise _bad(f"{where} unpacks to more than the {length} bytes that it claims")
    if not whole:
        raise _bad(f"{where} ends before its LZ4 frame does")
    if len(plain) != length or used != len(data):
        raise _bad(
            f"{where} unpacks to {len(plain)} bytes from {used} of {len(data)}; it claims {length}"
        )
    return plain


def ungroup(data: bytes) -> memoryview:
    """Puts bytes that are grouped by their position in each four back into order."""
    grouped = np.frombuffer(data, np.uint8)
    out = np.empty(len(data), np.uint8)
    at = 0
    for lane in range(4):
        part = out[lane::4]
        part[:] = grouped[at : at + len(part)]
        at += len(part)
    return out.data


def check_size(name: str, received: int) -> None:
    """Raises IntegrityError for a xorb of more bytes than clients send."""
    if received > MAX_XORB_BYTES:
        raise _bad(f"{name} is larger than {MAX_XORB_BYTES} bytes")


class Reader:
    """Checks a xorb that arrives in pieces and holds one chunk at most.

    `keep` is handed the bytes of each chunk, unpacked, in order; it must be done with them when it
    returns.
    """

    def __init__(self, expected: bytes, keep: Callable[[bytes | memoryview], None]) -> None:
        self._expected = expected
        self._keep = keep
        self._name = f"xorb {hashing.to_hex(expected)}"
        self._buffer = bytearray()
        self._received = 0
        self._unpacked = 0
        self._rows: list[tuple[bytes, int]] = []
        self._in_footer = False

    def feed(self, piece: bytes | memoryview) -> None:
        """Raises IntegrityError or NotSupported at the first chunk that is wrong."""
        self._received += len(piece)
        check_size(self._name, self._received)
        for at in range(0, len(piece), MAX_STORED_BYTES):
            self._buffer += piece[at : at + MAX_STORED_BYTES]
            self._take_chunks()

    def _take_chunks(self) -> None:
        at = 0
        with memoryview(self._buffer) as data:
            while not self._in_footer and (size := self._chunk(data[at:])):
                at += size
        del self._buffer[:at]
        if self._in_footer and len(self._buffer) > MAX_FOOTER_BYTES:
            raise _bad(f"the footer of {self._name} is larger than {MAX_FOOTER_BYTES} bytes")

    def _chunk(self, data: memoryview) -> int:
        """Takes the chunk at the start, if it is there whole, and returns its size."""
        with data:
            if len(data) < HEADER_BYTES:
                return 0
            if data[: len(FOOTER_IDENT)] == FOOTER_IDENT:
                self._in_footer = True
                return 0
            where = f"chunk {len(self._rows)} of {self._name}"
            if len(self._rows) == MAX_CHUNKS:
                raise _bad(f"{self._name} has more than {MAX_CHUNKS} chunks")
            header = read_header(data, where)
            end = HEADER_BYTES + header.stored
            if len(data) < end:
                return 0
            with data[HEADER_BYTES:end] as body:
                self._take(unpack(header, body, where))
            return end

    def _take(self, plain: bytes | memoryview) -> None:
        self._unpacked += len(plain)
        if self._unpacked > MAX_UNPACKED_BYTES:
            raise _bad(f"{self._name} unpacks to more than {MAX_UNPACKED_BYTES} bytes")
        self._rows.append((hashing.chunk_hash(plain), len(plain)))
        self._keep(plain)

    def finish(self) -> Table:
        """Rows of CHUNK, after the whole body. Raises IntegrityError: truncated, other hash."""
        if self._in_footer:
            self._check_footer(bytes(self._buffer))
        elif self._buffer:
            raise _bad(f"{self._name} is cut off inside chunk {len(self._rows)}")
        if not self._rows:
            raise _bad(f"{self._name} has no chunks")
        found = hashing.xorb_hash(self._rows)
        if found != self._expected:
            raise _bad(f"{self._name} holds chunks whose hash is {hashing.to_hex(found)}")
        return np.array(self._rows, dtype=CHUNK)

    def _check_footer(self, footer: bytes) -> None:
        version = footer[len(FOOTER_IDENT)]
        if version not in FOOTER_VERSIONS:
            raise NotSupported(
                f"the footer of {self._name} has version {version}; known are 0 and 1",
                remedy=_AGAIN,
            )
        claimed = int.from_bytes(footer[-4:], "little")
        if len(footer) < HEADER_BYTES + hashing.HASH_BYTES + 4 or claimed != len(footer) - 4:
            raise _bad(f"the footer of {self._name} claims {claimed} of {len(footer) - 4} bytes")
        named = footer[HEADER_BYTES : HEADER_BYTES + hashing.HASH_BYTES]
        if named != self._expected:
            raise _bad(f"the footer of {self._name} names xorb {hashing.to_hex(named)}")


def _bad(message: str) -> AdapterHubError:
    return IntegrityError(message, remedy=_AGAIN)
