"""Tensors that are computed from others when they are read: factors and changes of a weight."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from adapterhub.kernels.floatmode import default_float_mode
from adapterhub.methods.meaning import Values
from adapterhub.tensorfile import Tensor
from adapterhub.tensorfile.tensors import PIECE_BYTES


@dataclass(frozen=True, eq=False)
class Computed:
    """fp32 of `shape`, by `compute`, which reads `sources` each time that it is called.

    `exact`: whether `compute` gives the same bits on every machine, as elementwise arithmetic does
    and sums by a library do not.
    """

    shape: tuple[int, ...]
    compute: Callable[[], Values]
    sources: tuple[Tensor, ...]
    exact: bool = True

    @property
    def dtype(self) -> str:
        return "F32"

    @property
    def nbytes(self) -> int:
        return 4 * math.prod(self.shape)

    def read(self) -> Values:
        # What overflows is refused by its name and place, where it is used.
        with default_float_mode(), np.errstate(over="ignore", invalid="ignore"):
            values = np.ascontiguousarray(self.compute(), np.float32)
        if values.shape != self.shape:
            raise ValueError(f"computed {values.shape}, promised {self.shape}")
        return values

    def pieces(self, size: int = PIECE_BYTES) -> Iterator[memoryview]:
        raw = self.read().reshape(-1).view(np.uint8).data
        for start in range(0, len(raw), size):
            yield raw[start : start + size]


def fp32(tensor: Tensor) -> Values:
    """Its values in fp32, a fresh array; fp8, fp16 and bf16 fit exactly, fp64 is rounded once."""
    return np.asarray(tensor.read(), dtype=np.float32)


def is_exact(tensor: Tensor) -> bool:
    """False for what is computed in a way that may differ between machines."""
    return not isinstance(tensor, Computed) or tensor.exact
