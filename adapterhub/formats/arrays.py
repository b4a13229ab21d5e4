"""Headers of .npy and .npz files. Values are read by offset; nothing is unpickled or unpacked."""

from __future__ import annotations

import io
import math
import os
import warnings
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
_READERS = {
    (1, 0): np.lib.format.read_array_header_1_0,
    (2, 0): np.lib.format.read_array_header_2_0,
}


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
    stream = io.BytesIO(data[:_HEADER_BYTES])
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            read = _READERS.get(np.lib.format.read_magic(stream))
            if read is None:
                raise ValueError("has a version of the .npy format that is not read")
            shape, fortran, dtype = read(stream, max_header_size=_HEADER_BYTES)
    except (
        ValueError,
        TypeError,
        SyntaxError,
        RecursionError,
        MemoryError,
        OverflowError,
    ) as error:
        said = str(error).splitlines()[0][:120] if str(error) else type(error).__name__
        raise ValueError(f"has no sound .npy header: {said!a}") from None
    if dtype.hasobject:
        raise ValueError("holds Python objects, that is a pickle, which is never read")
    if len(shape) > 32 or any(extent < 0 or extent > 2**53 for extent in shape):
        raise ValueError(f"claims the shape {str(shape)[:80]}")
    return ArrayHeader(tuple(shape), bool(fortran), dtype, stream.tell())


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
