"""Lines of JSON as they arrive, where one string in a line may be too long to be held.

A commit carries small files as base64 within its lines. Such a string is handed on piece by piece
and decoded on the way; in its line, PLACEHOLDER stands for it.
"""

from __future__ import annotations

import binascii
import re
from collections.abc import Callable

from adapterhub.errors import AdapterHubError
from adapterhub.hub.state.errors import InvalidRequest, TooLarge

LONG = 512 * 1024
MOST_HELD = 1024 * 1024
MOST_EMPTY = 1000
PLACEHOLDER = "\0long string"
_MARK = b"\\u0000long string"
_OUTSIDE = re.compile(rb'["\n]')
_INSIDE = re.compile(rb'["\\\n]')


class Base64:
    """Decodes base64 that comes in pieces, and hands on the bytes. Raises InvalidRequest."""

    def __init__(self, write: Callable[[bytes], None]) -> None:
        self._write = write
        self._rest = b""
        self._ended = False

    def feed(self, text: bytes) -> None:
        text = self._rest + text
        whole = len(text) // 4 * 4
        self._rest = text[whole:]
        if whole:
            self._decode(text[:whole])

    def finish(self) -> None:
        if self._rest:
            raise not_base64()

    def _decode(self, text: bytes) -> None:
        if self._ended:
            raise not_base64()
        self._ended = text.endswith(b"=")
        self._write(decoded(text))


def decoded(text: bytes) -> bytes:
    """Raises InvalidRequest for what is not whole, padded base64."""
    try:
        return binascii.a2b_base64(text, strict_mode=True)
    except binascii.Error:
        raise not_base64() from None


def not_base64() -> AdapterHubError:
    return InvalidRequest("the content of a file is not base64", remedy="encode it anew")


class Lines:
    """`feed` bytes, then `finish`.

    `line(text)` is called for every line, after `long(piece)` for the pieces of its long string,
    if it has one. Raises InvalidRequest, TooLarge, and what these raise.
    """

    def __init__(self, line: Callable[[bytes], None], long: Callable[[bytes], None]) -> None:
        self._line, self._long = line, long
        self._held = bytearray()
        self._string_at = -1  # where in `_held` the string begins that we are in, or -1
        self._in_long = self._had_long = self._escaped = False
        self._empty = 0

    def feed(self, data: bytes) -> None:
        at = 0
        while at < len(data):
            at = self._through_long(data, at) if self._in_long else self._through(data, at)

    def finish(self) -> None:
        """The last line need not end."""
        if self._string_at >= 0:
            raise InvalidRequest("the commit is cut off within a string", remedy="repeat it")
        self._end_line()

    def _through_long(self, data: bytes, at: int) -> int:
        found = _INSIDE.search(data, at)
        end = found.start() if found else len(data)
        if end > at:
            self._long(data[at:end])
        if found and found[0] != b'"':
            raise not_base64()
        self._in_long = found is None
        if found:
            self._string_at = -1
            self._held += b'"'
            end += 1
        return end

    def _through(self, data: bytes, at: int) -> int:
        """Up to the next byte that changes what we are in."""
        if self._escaped:
            self._escaped = False
            self._hold(data[at : at + 1])
            return at + 1
        inside = self._string_at >= 0
        found = (_INSIDE if inside else _OUTSIDE).search(data, at)
        end = found.end() if found else len(data)
        self._hold(data[at:end])
        if found is None:
            return end
        if found[0] == b"\n":
            self._end_line()
        elif found[0] == b"\\":
            self._escaped = True
        else:
            self._string_at = -1 if inside else len(self._held)
        return end

    def _hold(self, data: bytes) -> None:
        self._held += data
        if self._string_at >= 0 and len(self._held) - self._string_at > LONG + 1:
            self._begin_long()
        if len(self._held) > MOST_HELD:
            raise TooLarge(
                f"a line has more than {MOST_HELD} bytes besides a file's content",
                remedy="send less in one line",
            )

    def _begin_long(self) -> None:
        if self._had_long:
            raise InvalidRequest("a line has two strings of that length", remedy="send one file")
        text = bytes(self._held[self._string_at :])
        del self._held[self._string_at :]
        self._held += _MARK
        self._had_long = True
        self._through_long(text, 0)

    def _end_line(self) -> None:
        text = bytes(self._held).strip()
        self._held.clear()
        self._string_at, self._had_long = -1, False
        if text:
            self._line(text)
        else:  # a thousand million of them would keep a core busy for an hour
            self._empty += 1
            if self._empty > MOST_EMPTY:
                raise InvalidRequest(
                    f"the commit has more than {MOST_EMPTY} empty lines", remedy="send none"
                )
