"""Tensors that are read when asked for: from a file, or from an array in memory."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from adapterhub.errors import InvalidOption, NotSupported
from adapterhub.tensorfile.dtypes import DTYPES, spelling
from adapterhub.tensorfile.reading import buffer, fill, open_regular, refusal

# Fits the second-level cache of current processors, so that who hashes or converts a piece
# finds it there.
PIECE_BYTES = 256 * 1024

Array = np.ndarray[Any, np.dtype[Any]]


class Tensor(Protocol):
    """What a tensor is, without its values; the values on demand."""

    @property
    def dtype(self) -> str:
        """As safetensors spells it: `BF16`."""

    @property
    def shape(self) -> tuple[int, ...]: ...

    @property
    def nbytes(self) -> int: ...

    def read(self) -> Array:
        """A fresh C-order array of numpy's or ml_dtypes' type; the caller may write to it."""

    def pieces(self, size: int = PIECE_BYTES) -> Iterator[memoryview]:
        """The little-endian C-order bytes in order, `size` at a time; nothing if it is empty."""


@dataclass(frozen=True, slots=True)
class FileTensor:
    """`nbytes` bytes from `offset` (counted from the start of the file) on."""

    path: Path
    dtype: str
    shape: tuple[int, ...]
    offset: int
    nbytes: int

    def read(self) -> Array:
        """See `Tensor`.

        Raises:
            NotFound, InvalidTensorFile: the file vanished or shrank since its header was read,
                or a BOOL is neither 0 nor 1.
            NotSupported: dtypes narrower than a byte (F4, F6_E2M3, F6_E3M2).
        """
        if self.dtype not in DTYPES:
            raise NotSupported(
                f"{self.path}: numpy has no arrays of {self.dtype}, which packs values into "
                f"less than a byte each",
                remedy="use the tensor's raw bytes, or a checkpoint in another dtype",
            )
        raw = buffer(self.nbytes)
        with open_regular(self.path) as fd:
            fill(fd, raw.data, self.offset, self.path)
        if self.dtype == "BOOL" and raw.size and raw.max() > 1:
            first = int(np.argmax(raw > 1))
            raise refusal(self.path, f"a BOOL has the value {raw[first]}", self.offset + first)
        return raw.view(DTYPES[self.dtype]).reshape(self.shape)

    def pieces(self, size: int = PIECE_BYTES) -> Iterator[memoryview]:
        """See `Tensor`. Each piece is memory of its own. Raises what `read` raises."""
        with open_regular(self.path) as fd:
            for start in range(0, self.nbytes, size):
                piece = buffer(min(size, self.nbytes - start)).data
                fill(fd, piece, self.offset + start, self.path)
                yield piece


@dataclass(frozen=True, slots=True, eq=False)
class ArrayTensor:
    """A tensor in memory. `array` may have any strides and byte order; it is not copied.

    Raises:
        InvalidOption: safetensors has no dtype for the array.
    """

    array: Array
    dtype: str = field(init=False)

    def __post_init__(self) -> None:
        array = np.asarray(self.array)
        dtype = spelling(array.dtype)
        if dtype is None:
            raise InvalidOption(
                f"safetensors has no dtype for arrays of {array.dtype}",
                remedy=f"convert the array to one of {', '.join(sorted(DTYPES))}",
            )
        object.__setattr__(self, "array", array)
        object.__setattr__(self, "dtype", dtype)

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.array.shape)

    @property
    def nbytes(self) -> int:
        return self.array.nbytes

    def read(self) -> Array:
        return self.array.astype(DTYPES[self.dtype], order="C", copy=True)

    def pieces(self, size: int = PIECE_BYTES) -> Iterator[memoryview]:
        little = self.array.astype(DTYPES[self.dtype], order="C", copy=False)
        raw = little.reshape(-1).view(np.uint8).data
        for start in range(0, len(raw), size):
            yield raw[start : start + size]
