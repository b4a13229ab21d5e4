"""Plans for the C kernel: factors packed once, in the order in which its inner loop reads them."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from adapterhub.kernels.library import Fault, Kernel, Plan, Term
from adapterhub.kernels.operands import BFLOAT16, Array, Place, StoredTerm

_PANEL, _LINE = 64, 64  # PANEL of merge.h; bytes of a cache line
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
        self._terms = (Term * len(terms))(*(self._term(kernel, term) for term in terms))
        rows, columns = shape
        if all(left is None for _, left, _ in terms):
            # Elements on their own, in rows of one panel, so that they fill whole tiles.
            rows, columns = -(-rows * columns // _PANEL), _PANEL
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

    def _term(self, kernel: Kernel, term: StoredTerm) -> Term:
        left, right = term[1:]
        scale = int(term[0].view(np.uint32))
        if left is None:
            return Term(self._kept(_padded(right)), None, -1, scale)
        rows = np.require(left, np.float32, ["C", "ALIGNED"])
        return Term(self._kept(rows), self._kept(_packed(kernel, right)), rows.shape[1], scale)

    def _kept(self, array: Array) -> int:
        """Its address, valid as long as this object lives."""
        self._arrays.append(array)
        return int(array.ctypes.data)


def _packed(kernel: Kernel, columns: NDArray[np.float32]) -> NDArray[np.float32]:
    """(rank, columns) in the order in which the kernel's inner loop reads them."""
    if kernel.library is None:
        raise TypeError("the numpy reference packs nothing")
    rank, count = columns.shape
    columns = np.require(columns, np.float32, ["ALIGNED"])
    packed = _aligned(rank * -(-count // _PANEL) * _PANEL)
    steps = (step // columns.itemsize for step in columns.strides)
    kernel.library.adapterhub_merge_pack(
        kernel.number, columns.ctypes.data, rank, count, *steps, packed.ctypes.data
    )
    return packed


def _padded(vector: NDArray[np.float32]) -> NDArray[np.float32]:
    """With zeros to whole panels."""
    padded = np.zeros(-(-vector.size // _PANEL) * _PANEL, np.float32)
    padded[: vector.size] = vector
    return padded


def _aligned(size: int) -> NDArray[np.float32]:
    spare = np.empty(size + _LINE // 4, np.float32)
    start = -spare.ctypes.data % _LINE // 4
    return spare[start : start + size]
