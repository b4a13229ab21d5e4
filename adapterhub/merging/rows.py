"""Rows that adapters put in place of those of one tensor: the embeddings of single tokens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from adapterhub.errors import NotMergeable
from adapterhub.merging.work import Row, Source
from adapterhub.methods import TokenRows
from adapterhub.tensorfile import FileTensor, Tensor


class Rows:
    """Those of the tensor `stored`, as they are collected."""

    def __init__(self, stored: str, sources: Sequence[Source]) -> None:
        self._stored = stored
        self._sources = sources
        self._by_index: dict[int, tuple[int, Tensor, int]] = {}  # source, value, row of the value

    @property
    def providers(self) -> tuple[int, ...]:
        return tuple(dict.fromkeys(number for number, _, _ in self._by_index.values()))

    def add(self, number: int, part: TokenRows) -> None:
        """Take in the rows of adapter `number`. Raises NotMergeable for a row with two values."""
        for row, index in enumerate(part.indices):
            new = (number, part.value, row)
            there = self._by_index.setdefault(index, new)
            if there is not new and not _same(there, new):
                names = [self._sources[item[0]].name for item in (there, new)]
                whose = f"{names[0]} twice" if names[0] == names[1] else f"{' and '.join(names)}"
                raise NotMergeable(
                    f"row {index} of {self._stored} is replaced by {whose}, with different values",
                    remedy="merge only one adapter that brings this row",
                )

    def ordered(self, width: int) -> tuple[Row, ...]:
        """By their place in a tensor whose rows have `width` elements."""
        return tuple(
            Row(index * width, row, value)
            for index, (_, value, row) in sorted(self._by_index.items())
        )


def row_bytes(value: Tensor, row: int) -> bytes:
    """Those of one row of a matrix."""
    if isinstance(value, FileTensor):
        width = value.nbytes // value.shape[0]
        start = value.offset + row * width
        value = replace(value, shape=value.shape[1:], offset=start, nbytes=width)
        return b"".join(value.pieces())
    return bytes(value.read()[row].tobytes())


def _same(one: tuple[int, Tensor, int], other: tuple[int, Tensor, int]) -> bool:
    if (one[1].dtype, one[1].shape[1:]) != (other[1].dtype, other[1].shape[1:]):
        return False
    return row_bytes(*one[1:]) == row_bytes(*other[1:])
