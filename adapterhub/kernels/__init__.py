"""The merge arithmetic (DESIGN §4): same bits whatever the machine, the threads and the tiles.

These functions check their operands, set the float mode of the calling thread and hand over to the
implementation. Several threads may call them at once; each call works in less than 32 MB beyond
its result, whatever the size of the weight.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from adapterhub.kernels import reference
from adapterhub.kernels.floatmode import default_float_mode
from adapterhub.kernels.operands import Array, Factor, NonFinite, check_low_rank, check_scaled

__all__ = ["Factor", "NonFinite", "add_scaled", "describe", "merge_low_rank", "name", "round_to"]

name = "numpy reference"


def describe() -> dict[str, str | bool]:
    """What reports print about the arithmetic in use."""
    return {"kernel": "numpy-reference", "exact": True}


def merge_low_rank(weight: Array, factors: Sequence[Factor]) -> Array:
    """`weight + Σ scale · b @ a` by the formula of DESIGN §4, as a new C-order array.

    `weight`: (out, in), any strides, float32, float16 or bfloat16, also the dtype of the result.
    Without factors the weight comes back unchanged. Raises NonFinite (a ValueError) for inf or NaN
    in an operand and for results that overflow, ValueError and TypeError for shapes and dtypes
    that do not fit, NotSupported where the processor's float mode cannot be set.
    """
    check_low_rank(weight, factors)
    with default_float_mode():
        return reference.merge_low_rank(weight, factors)


def add_scaled(weight: Array, terms: Sequence[tuple[np.float32, NDArray[np.float32]]]) -> Array:
    """`acc = fma(scale, bias, acc)` for each `(scale, bias)` in order, rounded once at the end.

    `weight`, `bias`: (n,), bias in float32. Raises as `merge_low_rank` does.
    """
    check_scaled(weight, terms)
    with default_float_mode():
        return reference.add_scaled(weight, terms)


def round_to(acc: NDArray[np.float32], dtype: np.dtype[Any]) -> Array:
    """Round float32 of any shape to `dtype`, nearest even, as a new array.

    `dtype`: float32 (a copy), float16 or bfloat16. Raises as `merge_low_rank` does.
    """
    with default_float_mode():
        return reference.round_to(acc, dtype)
