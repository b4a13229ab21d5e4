"""The merge arithmetic (DESIGN §4): same bits whatever the machine, the threads and the tiles.

A kernel in C (`merge.c`, built as `build.py` says) runs by AVX-512, AVX2 or portable code; where it
was not built, the exact numpy reference does the same, slower. $ADAPTERHUB_KERNEL forces one of
`avx512`, `avx2`, `portable`, `numpy`.

These functions check their operands, set the float mode of the calling thread and hand over to the
implementation. Several threads may call them at once. `prepare` and `prepare_scaled` are for
engines that stream; the others take and give whole arrays, and beyond the result need at most
32 MB and a copy of the factors.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from adapterhub.kernels import library, reference
from adapterhub.kernels.floatmode import default_float_mode
from adapterhub.kernels.operands import Array, Factor, NonFinite, check_dtype
from adapterhub.kernels.prepared import Prepared, prepare, prepare_scaled

__all__ = [
    "Factor",
    "NonFinite",
    "Prepared",
    "add_scaled",
    "describe",
    "merge_low_rank",
    "name",
    "prepare",
    "prepare_scaled",
    "round_to",
]


def describe() -> dict[str, str | bool]:
    """What reports print about the arithmetic in use; `note` says why it is not compiled.

    Raises InvalidOption and NotSupported for a value of $ADAPTERHUB_KERNEL that cannot be had.
    """
    kernel = library.choose()
    if kernel.library is None:
        return {"kernel": "numpy-reference", "exact": True, "note": kernel.note}
    return {"kernel": f"c-{kernel.name}", "exact": True}


def __getattr__(attribute: str) -> str:
    """`name`: the arithmetic in use, in words, looked up anew each time."""
    if attribute != "name":
        raise AttributeError(f"module {__name__} has no attribute {attribute}")
    kernel = library.choose()
    return "numpy reference" if kernel.library is None else f"C ({kernel.name})"


def merge_low_rank(weight: Array, factors: Sequence[Factor]) -> Array:
    """`weight + Σ scale · b @ a` by the formula of DESIGN §4, as a new C-order array.

    `weight`: (out, in), any strides, float32, float16 or bfloat16, also the dtype of the result.
    Without factors the weight comes back unchanged. Raises NonFinite (a ValueError) for inf or NaN
    in an operand and for results that overflow, ValueError and TypeError for shapes and dtypes
    that do not fit, NotSupported where the processor's float mode cannot be set.
    """
    prepared = prepare(weight.shape, factors, weight.dtype)
    merged = np.array(weight, order="C", copy=True)
    prepared.run(merged, merged)
    return merged


def add_scaled(weight: Array, terms: Sequence[tuple[np.float32, NDArray[np.float32]]]) -> Array:
    """`acc = fma(scale, bias, acc)` for each `(scale, bias)` in order, rounded once at the end.

    `weight`, `bias`: (n,), bias in float32. Raises as `merge_low_rank` does.
    """
    if weight.ndim != 1:
        raise ValueError(f"weight must be (n,), got {weight.shape}")
    prepared = prepare_scaled(weight.size, terms, weight.dtype)
    summed = np.array(weight, order="C", copy=True)
    prepared.run(summed, summed)
    return summed


def round_to(acc: NDArray[np.float32], dtype: np.dtype[Any]) -> Array:
    """Round float32 of any shape to `dtype`, nearest even, as a new array.

    `dtype`: float32 (a copy), float16 or bfloat16. Raises as `merge_low_rank` does, for inf and NaN
    as for results that overflow.
    """
    check_dtype(dtype)
    if acc.dtype != np.float32:
        raise TypeError(f"round_to takes float32, got {acc.dtype}")
    rounded = np.empty(acc.shape, dtype)
    try:
        prepare_scaled(acc.size, (), acc.dtype, dtype).run(np.ascontiguousarray(acc), rounded)
    except NonFinite:
        # The reference names the first of either kind, in terms of this shape.
        with default_float_mode():
            reference.round_to(acc, dtype)
        raise
    return rounded
