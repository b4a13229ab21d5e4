"""A strict reader of safetensors headers, in front of any library.

    file   = uint64 little-endian N ‖ N bytes of JSON ‖ data
    JSON   = {"__metadata__": {string: string}, name: {"dtype", "shape", "data_offsets"}, …}

Only that grammar is taken: nothing is parsed that could not be part of it, so nesting is bounded
by construction and a hostile header cannot make Python build large objects out of it. What is
accepted here, the safetensors library accepts too, with the same tensors (the tests compare);
beyond it, this reader refuses duplicate keys, unknown fields, hostile names, and shapes that
numpy cannot hold.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, NoReturn

from adapterhub.errors import InvalidTensorFile
from adapterhub.tensorfile.dtypes import storage_bytes
from adapterhub.tensorfile.json_text import (
    JSONDecodeError,
    decode,
    decode_string,
    is_unicode,
)
from adapterhub.tensorfile.names import name_problem, shown
from adapterhub.tensorfile.reading import AGAIN, fill, open_regular, refusal
from adapterhub.tensorfile.strangers import stranger
from adapterhub.tensorfile.tensors import FileTensor

# The reference implementation's own limit.
MAX_HEADER_BYTES = 100_000_000
# 32 extents of 16 digits, dtype and offsets need about 700 characters.
MAX_ENTRY_CHARACTERS = 4096
METADATA = "__metadata__"

_SPACE = re.compile(r"[ \t\n\r]*")
# An object whose values are scalars. Possessive, so that no input makes it backtrack.
_FLAT_OBJECT = re.compile(r'\{(?:[^{}\[\]"]++|"(?:[^"\\]++|\\.)*+")*+\}', re.DOTALL)


@dataclass(frozen=True)
class Header:
    """`tensors` in the order of their bytes in the file, which begin at `data_start`."""

    path: Path
    tensors: Mapping[str, FileTensor]
    metadata: Mapping[str, str]
    data_start: int


def read_header(path: str | os.PathLike[str]) -> Header:
    """The header of a safetensors file, every claim in it checked against the file.

    Raises:
        NotFound: no such file.
        InvalidTensorFile: anything else; `offset` is the byte in the file where it was seen.
    """
    path = Path(path)
    with open_regular(path) as fd:
        size = os.fstat(fd).st_size
        text = _header_text(path, fd, size)
    data_start = 8 + len(text.encode("utf-8"))
    entries, metadata = _Parser(path, text).parse()
    entries.sort(key=lambda entry: (entry.begin, entry.end))
    _check_cover(path, entries, data_start, size)
    tensors = {
        e.name: FileTensor(path, e.dtype, e.shape, data_start + e.begin, e.end - e.begin)
        for e in entries
    }
    return Header(path, MappingProxyType(tensors), MappingProxyType(metadata), data_start)


def _header_text(path: Path, fd: int, size: int) -> str:
    start = memoryview(bytearray(min(size, 512)))
    fill(fd, start, 0, path)
    if size < 8:
        raise _no_header(path, bytes(start), f"has {size} bytes, a safetensors file at least 8")
    length = int.from_bytes(start[:8], "little")
    if length > MAX_HEADER_BYTES:
        what = f"claims a header of {length} bytes, at most {MAX_HEADER_BYTES} are taken"
        raise _no_header(path, bytes(start), what)
    if length > size - 8:
        what = f"is cut within its header: {8 + length - size} bytes of it are missing"
        raise _no_header(path, bytes(start), what)
    raw = bytearray(length)
    fill(fd, memoryview(raw), 8, path)
    if raw[:1] != b"{":
        raise refusal(path, "the header does not begin with '{'", 8)
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError as error:
        raise refusal(path, "the header is not UTF-8", 8 + error.start) from None


def _no_header(path: Path, start: bytes, what: str) -> InvalidTensorFile:
    if known := stranger(start):
        what, remedy = f"is {known[0]}, not a safetensors file", known[1]
        return refusal(path, what, 0, remedy)
    return refusal(path, what, 0, AGAIN)


@dataclass(frozen=True, slots=True)
class _Entry:
    """One tensor as claimed; `begin` and `end` count from the start of the data."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int


class _Parser:
    """Walks the outermost object itself, so that the place of every key is known."""

    def __init__(self, path: Path, text: str) -> None:
        self._path = path
        self._text = text
        self._at = 1
        self._names: set[str] = set()
        self._entries: list[_Entry] = []
        self._metadata: dict[str, str] = {}

    def parse(self) -> tuple[list[_Entry], dict[str, str]]:
        if not self._take("}"):
            self._item()
            while self._take(","):
                self._item()
            if not self._take("}"):
                self._refuse("the header is not JSON: expected ',' or '}'", self._at)
        self._skip_space()
        if self._at != len(self._text):
            self._refuse("the header goes on after its last '}'", self._at)
        return self._entries, self._metadata

    def _item(self) -> None:
        self._skip_space()
        place = self._at
        key = self._key()
        if key in self._names:
            self._refuse(f"the key {shown(key)} stands twice in the header", place)
        self._names.add(key)
        self._skip_space()
        try:
            if key == METADATA:
                self._metadata = _metadata(decode(self._metadata_source()))
            else:
                self._entries.append(_entry(key, decode(self._entry_source())))
        except JSONDecodeError as error:
            self._refuse(f"{_what(key)} is not JSON: {error.msg}", self._at + error.pos)
        except ValueError as error:
            self._refuse(f"{_what(key)}: {error}", place)
        self._at = self._end

    def _key(self) -> str:
        if not self._text.startswith('"', self._at):
            self._refuse("the header is not JSON: expected a name in double quotes", self._at)
        try:
            key, self._at = decode_string(self._text, self._at)
        except JSONDecodeError as error:
            self._refuse(f"the header is not JSON: {error.msg}", error.pos)
        if not self._take(":"):
            self._refuse("the header is not JSON: expected ':'", self._at)
        return key

    def _metadata_source(self) -> str:
        if self._text.startswith("null", self._at):  # mlx wrote that where it had none
            self._end = self._at + len("null")
            return "{}"
        found = _FLAT_OBJECT.match(self._text, self._at)
        if not found:
            raise ValueError("is not a flat map of strings to strings")
        self._end = found.end()
        return found.group()

    def _entry_source(self) -> str:
        """The text of a tensor's entry: up to the first brace, since none is nested in it."""
        if not self._text.startswith("{", self._at):
            raise ValueError("its entry is not a JSON object")
        self._end = self._text.find("}", self._at, self._at + MAX_ENTRY_CHARACTERS) + 1
        source = self._text[self._at : self._end]
        if not source:
            raise ValueError(f"its entry does not end within {MAX_ENTRY_CHARACTERS} characters")
        if source.count("{") > 1 or source.count("[") > 2:
            raise ValueError("its entry is nested deeper than the format allows")
        return source

    def _take(self, character: str) -> bool:
        """Step over `character`, and white space before it, if it is next."""
        self._skip_space()
        found = self._text.startswith(character, self._at)
        self._at += found
        return found

    def _skip_space(self) -> None:
        if found := _SPACE.match(self._text, self._at):
            self._at = found.end()

    def _refuse(self, what: str, at: int) -> NoReturn:
        """Raise for the character at index `at` of the header."""
        raise refusal(self._path, what, 8 + len(self._text[:at].encode("utf-8")))


# --- what the values claim --------------------------------------------------------------------


def _what(key: str) -> str:
    return METADATA if key == METADATA else f"tensor {shown(key)}"


def _metadata(value: Mapping[str, Any]) -> dict[str, str]:
    for key, text in value.items():
        if not isinstance(text, str):
            raise ValueError(f"{shown(key)} is a {type(text).__name__}, expected a string")
        if not is_unicode(key) or not is_unicode(text):
            raise ValueError(f"{shown(key)} holds a lone surrogate, which is no Unicode text")
    return dict(value)


def _entry(name: str, value: Mapping[str, Any]) -> _Entry:
    if problem := name_problem(name):
        raise ValueError(f"its name {problem}")
    if set(value) != {"dtype", "shape", "data_offsets"}:
        found = ", ".join(shown(key) for key in list(value)[:10]) or "nothing"
        raise ValueError(f"its entry has {found}, expected dtype, shape and data_offsets")
    dtype, shape = value["dtype"], value["shape"]
    if not isinstance(dtype, str) or not isinstance(shape, list):
        raise ValueError("its dtype is not a string, or its shape not a list")
    nbytes = storage_bytes(dtype, shape)
    begin, end = _offsets(value["data_offsets"])
    if end - begin != nbytes:
        claimed = f"data_offsets [{begin}, {end}] hold {end - begin} bytes"
        raise ValueError(f"{claimed}, but shape {shape} of {dtype} is {nbytes} bytes")
    return _Entry(name, dtype, tuple(shape), begin, end)


def _offsets(value: object) -> Sequence[int]:
    """Two whole numbers; negative ones never leave the JSON decoder."""
    if not isinstance(value, list) or [type(item) for item in value] != [int, int]:
        raise ValueError("its data_offsets are not two whole numbers")
    if value[0] > value[1]:
        raise ValueError(f"its data_offsets {value} end before they begin")
    return value


def _check_cover(path: Path, entries: Sequence[_Entry], data_start: int, size: int) -> None:
    """The tensors, in order, cover the data: no overlap, no hole, nothing before or after."""
    covered, before = 0, "__metadata__"
    for entry in entries:
        if entry.begin < covered:
            count = min(covered, entry.end) - entry.begin
            what = f"{_what(entry.name)} overlaps {_what(before)} by {count} bytes"
            raise refusal(path, what, data_start + entry.begin)
        if entry.begin > covered:
            what = f"{entry.begin - covered} bytes before {_what(entry.name)} belong to no tensor"
            raise refusal(path, what, data_start + covered)
        covered, before = entry.end, entry.name
    missing = data_start + covered - size
    if missing > 0:
        what = f"is cut: {missing} of {data_start + covered} bytes are missing"
        raise refusal(path, what, size, "download the file again")
    if missing < 0:
        raise refusal(path, f"{-missing} bytes follow the last tensor", data_start + covered)
