"""Plans for the C kernel: factors packed once, in the order in which its inner loop reads them."""

from __future__ import annotations

import ctypes
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from adapterhub.kernels.library import Fault, Kernel, Plan, Term
from adapterhub.kernels.operands import BFLOAT16, Array, Place, StoredTerm

_BLOCK, _PANEL, _LINE = 6, 64, 64  # BLOCK and PANEL of merge.h; bytes of a cache line
_NUMBER = {np.dtype(np.float32): 0, np.dtype(np.float16): 1, BFLOAT16: 2}
_NONE = 2**63 - 1


class CompiledWork:
    """A merge into one stored matrix. Immutable; any number of threads may run it at once.

    `shape`: (rows, columns) as stored; `dtypes`: stored and written.
    """

    def __init__(
        self,
        kernel: Kernel,
        shape: tuple[int, int],
        dtypes: tuple[np.dtype[Any], np.dtype[Any]],
        terms: Sequence[StoredTerm],
    ) -> None:
        if kernel.library is None:
            raise TypeError("the numpy reference has no compiled work")
        self._run = kernel.library.adapterhub_merge_run
        self._arrays: list[Array] = []  # keeps alive what the pointers below point to
        self._terms = (Term * len(terms))(*(self._packed(kernel.width, term) for term in terms))
        rows, columns = shape
        self._plan = Plan(
            kernel.number, *(_NUMBER[d] for d in dtypes), len(terms), rows, columns, self._terms
        )

    def run(self, source: Array, target: Array, first: int) -> Place | None:
        """1-D arrays of equal length; what is wrong first, if anything is."""
        fault = Fault()
        self._run(
            ctypes.byref(self._plan),
            source.ctypes.data,
            target.ctypes.data,
            first,
            source.size,
            ctypes.byref(fault),
        )
        if fault.weight != _NONE:
            return "weight", fault.weight
        return ("result", fault.result) if fault.result != _NONE else None

    def _packed(self, width: int, term: StoredTerm) -> Term:
        left, right = term[1:]
        scale = int(term[0].view(np.uint32))
        if left is None:
            vector = self._kept(_tiled(right[:, None], _PANEL, _PANEL))
            return Term(None, vector, -1, scale)
        rows = self._kept(_tiled(left, _BLOCK, _BLOCK))
        columns = self._kept(_tiled(right.T, width, _PANEL))
        return Term(rows, columns, left.shape[1], scale)

    def _kept(self, array: Array) -> int:
        """Its address, valid as long as this object lives."""
        self._arrays.append(array)
        return int(array.ctypes.data)


def _tiled(array: NDArray[np.float32], width: int, multiple: int) -> NDArray[np.float32]:
    """(n, rank) → (n / width, rank, width), n padded with zeros to the multiple of `multiple`."""
    length, rank = array.shape
    whole, rest = divmod(length, width)
    tiled = _aligned_zeros((-(-length // multiple) * multiple // width, rank, width))
    tiled[:whole] = array[: whole * width].reshape(whole, width, rank).transpose(0, 2, 1)
    if rest:
        tiled[whole, :, :rest] = array[whole * width :].T
    return tiled


def _aligned_zeros(shape: tuple[int, int, int]) -> NDArray[np.float32]:
    size = math.prod(shape)
    spare = np.zeros(size + _LINE // 4, np.float32)
    start = -spare.ctypes.data % _LINE // 4
    return spare[start : start + size].reshape(shape)
