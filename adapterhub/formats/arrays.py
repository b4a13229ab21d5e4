"""Headers of .npy and .npz files. Values are read by offset; nothing is unpickled or unpacked."""

from __future__ import annotations

import math
import os
import re
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from adapterhub.errors import InvalidTensorFile
from adapterhub.formats import zips
from adapterhub.tensorfile import ArrayTensor, FileTensor, Tensor, spelling

MAGIC = b"\x93NUMPY"
_HEADER_BYTES = 10_000
_ARRAY_BYTES = 256 * 1024 * 1024
_LENGTHS = {b"\x01\x00": "<H", b"\x02\x00": "<I", b"\x03\x00": "<I"}
# The dict that numpy, jax and mlx write. numpy's own reader parses it as Python, and fails in as
# many ways as Python's parser does.
_ITEM = (
    r"\s*+'(?:descr'\s*+:\s*+'(?P<descr>[<>|=]?[biufcOSUV]\d{0,4})'"
    r"|fortran_order'\s*+:\s*+(?P<fortran>True|False)"
    r"|shape'\s*+:\s*+\((?P<shape>(?:\s*+\d{1,19}\s*+,)*+(?:\s*+\d{1,19})?\s*+)\))\s*+"
)
_PLAIN_ITEM = re.sub(r"\?P<\w+>", "?:", _ITEM)
_DICT = re.compile(rf"\{{(?:{_PLAIN_ITEM},){{2}}{_PLAIN_ITEM},?\s*+\}}\s*+")
_PAIRS = re.compile(_ITEM)


@dataclass(frozen=True)
class ArrayHeader:
    """`start` is where the values begin, counted from the start of the .npy data."""

    shape: tuple[int, ...]
    fortran: bool
    dtype: np.dtype[Any]
    start: int

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize


def header(data: bytes) -> ArrayHeader:
    """The header that `data` begins with. Raises ValueError."""
    form = _LENGTHS.get(data[6:8]) if data.startswith(MAGIC) else None
    if form is None or len(data) < 8 + struct.calcsize(form):
        raise ValueError("has no .npy header of a version that is read")
    start = 8 + struct.calcsize(form)
    (length,) = struct.unpack_from(form, data, 8)
    text = data[start : start + length].decode("latin-1")
    if len(text) < length or _DICT.fullmatch(text) is None:
        raise ValueError(f"has no sound .npy header: {text[:80]!a}")
    found: dict[str, str] = {}
    for item in _PAIRS.finditer(text, 1):
        found |= {name: value for name, value in item.groupdict().items() if value is not None}
    if len(found) != 3:
        raise ValueError(f"has no sound .npy header: {text[:80]!a}")
    return _checked(found, start + length)


def _checked(found: Mapping[str, str], start: int) -> ArrayHeader:
    try:
        dtype = np.dtype(found["descr"])
    except TypeError:
        raise ValueError(f"holds {found['descr']!a}, which is no type of numpy") from None
    if dtype.hasobject:
        raise ValueError("holds Python objects, that is a pickle, which is never read")
    shape = tuple(int(extent) for extent in found["shape"].split(",") if extent.strip())
    if len(shape) > 32 or any(extent > 2**53 for extent in shape):
        raise ValueError(f"claims the shape {str(shape)[:80]}")
    return ArrayHeader(shape, found["fortran"] == "True", dtype, start)


def npy_header(fd: int) -> ArrayHeader:
    """Of a whole file: its size has to be what the header claims. Raises ValueError."""
    found = header(os.pread(fd, _HEADER_BYTES, 0))
    if (size := os.fstat(fd).st_size) != found.start + found.nbytes:
        claimed = f"shape {list(found.shape)} of {found.dtype} and its header are"
        raise ValueError(f"has {size} bytes, {claimed} {found.start + found.nbytes}")
    return found


def npz_headers(fd: int) -> Mapping[str, ArrayHeader]:
    """Name (without .npy) → header of every array; `start` is no offset here. Raises ValueError."""
    found: dict[str, ArrayHeader] = {}
    for member in zips.members(fd):
        try:
            head = header(zips.stored(fd, member, _HEADER_BYTES))
        except ValueError as error:
            raise ValueError(f"{member.name[:80]!a} {error}") from None
        if member.size != head.start + head.nbytes:
            raise ValueError(f"{member.name[:80]!a} has another size than its shape needs")
        found[member.name.removesuffix(".npy")] = head
    return found


def tensor(path: Path, head: ArrayHeader) -> Tensor:
    """The array of a .npy file. Raises InvalidTensorFile where safetensors has no such dtype."""
    dtype = spelling(head.dtype)
    if dtype is None:
        raise InvalidTensorFile(
            f"{path} holds {head.dtype}, a type that safetensors lacks",
            remedy="save it as float32",
        )
    plain = head.dtype.newbyteorder("<") == head.dtype or head.dtype.itemsize == 1
    if plain and not (head.fortran and len(head.shape) > 1):
        return FileTensor(path, dtype, head.shape, head.start, head.nbytes)
    if head.nbytes > _ARRAY_BYTES:
        raise InvalidTensorFile(
            f"{path} has {head.nbytes} bytes in an order that has to be changed",
            remedy="save it in C order and little-endian",
        )
    values = np.fromfile(path, head.dtype, math.prod(head.shape), offset=head.start)
    return ArrayTensor(values.reshape(head.shape, order="F" if head.fortran else "C"))
