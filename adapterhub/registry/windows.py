"""Parts of a matrix that are read when asked for, without reading the matrix anew for each.

The factors of many experts lie in one matrix, and the columns of one expert all over it.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from adapterhub.tensorfile import ArrayTensor, FileTensor, Tensor
from adapterhub.tensorfile.tensors import PIECE_BYTES

HELD_BYTES = 128 * 1024 * 1024  # of all matrices that are kept in memory

Array = np.ndarray[Any, np.dtype[Any]]


class Shared:
    """A matrix that many windows look at. It stays in memory while it is among the last ones used.

    Threads may share it: the first one reads, the others wait.
    """

    def __init__(self, tensor: Tensor) -> None:
        self.tensor = tensor
        self._array: Array | None = None
        self._reading = threading.Lock()

    def array(self) -> Array:
        """The values, for reading only."""
        with self._reading:
            found = self.tensor.read() if self._array is None else self._array
            self._array = found
        _recent.use(self)
        return found

    @property
    def held(self) -> bool:
        return self._array is not None

    def let_go(self) -> None:
        self._array = None


class _Recent:
    """The matrices in memory, the last used one last: `HELD_BYTES` of them, and always that one."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._held: list[weakref.ref[Shared]] = []

    def use(self, newest: Shared) -> None:
        with self._lock:
            others = [found for ref in self._held if (found := ref()) and found is not newest]
            room = HELD_BYTES - newest.tensor.nbytes
            kept: list[Shared] = [newest]
            for shared in reversed(others):
                room -= shared.tensor.nbytes
                if room < 0:
                    shared.let_go()
                else:
                    kept.append(shared)
            self._held = [weakref.ref(shared) for shared in reversed(kept)]


_recent = _Recent()


@dataclass(frozen=True, slots=True, eq=False)
class Window:
    """Some rows and columns of a matrix, as a tensor."""

    of: Shared
    rows: slice
    columns: slice

    @property
    def dtype(self) -> str:
        return self.of.tensor.dtype

    @property
    def shape(self) -> tuple[int, ...]:
        height, width = self.of.tensor.shape
        rows, columns = range(height)[self.rows], range(width)[self.columns]
        return len(rows), len(columns)

    @property
    def nbytes(self) -> int:
        height, width = self.of.tensor.shape
        rows, columns = self.shape
        return self.of.tensor.nbytes * rows * columns // (height * width) if rows * columns else 0

    def read(self) -> Array:
        return np.array(self.of.array()[self.rows, self.columns], order="C")

    def pieces(self, size: int = PIECE_BYTES) -> Iterator[memoryview]:
        return ArrayTensor(self.read()).pieces(size)


def row_range(shared: Shared, start: int, stop: int) -> Tensor:
    """Rows start … stop-1 of a matrix: in a file, a place of their own."""
    tensor = shared.tensor
    if not isinstance(tensor, FileTensor) or not tensor.shape[0]:
        return Window(shared, slice(start, stop), slice(None))
    pitch = tensor.nbytes // tensor.shape[0]
    return replace(
        tensor,
        shape=(stop - start, *tensor.shape[1:]),
        offset=tensor.offset + start * pitch,
        nbytes=(stop - start) * pitch,
    )
