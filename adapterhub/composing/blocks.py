"""A dense matrix a few rows at a time, on several threads, with buffers of a few megabytes.

What a block gives does not hang on the others, and sums over blocks are taken in their order, so
that the number of threads changes nothing.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import numpy as np

from adapterhub.composing.factored import Matrix
from adapterhub.composing.stopping import checker
from adapterhub.errors import NotMergeable
from adapterhub.kernels.floatmode import default_float_mode
from adapterhub.tensorfile import usable_cores

ELEMENTS = 1 << 18  # of a block: two megabytes in fp64
THREADS = 4  # at most: each has buffers of its own

T = TypeVar("T")


def buffers(shape: tuple[int, ...]) -> int:
    """Bytes that work on a matrix takes beside it: four blocks' worth in fp64 on each thread."""
    return 4 * 8 * min(math.prod(shape), THREADS * ELEMENTS)


def blocks(shape: tuple[int, ...]) -> list[slice]:
    """Slices of rows, of about ELEMENTS elements, at least one row each."""
    rows, columns = shape
    step = max(1, ELEMENTS // max(1, columns))
    return [slice(start, min(start + step, rows)) for start in range(0, rows, step)]


def each(shape: tuple[int, ...], work: Callable[[slice], T]) -> list[T]:
    """What `work` gives for each block of rows, in their order. Overflows are silent."""
    check = checker()

    @default_float_mode()
    @np.errstate(over="ignore", invalid="ignore")
    def alone(rows: slice) -> T:
        check()
        return work(rows)

    places = blocks(shape)
    threads = min(THREADS, usable_cores(), len(places))
    if threads <= 1:
        return [alone(rows) for rows in places]
    with ThreadPoolExecutor(threads, "blocks") as pool:
        return list(pool.map(alone, places))


def total(shape: tuple[int, ...], work: Callable[[slice], float]) -> float:
    """The sum of one number for each block."""
    return float(sum(each(shape, work)))


def energy_of(delta: Matrix) -> float:
    """Σ x², in fp64."""
    return total(delta.shape, lambda rows: float(np.square(delta[rows], dtype=np.float64).sum()))


def finite_energy(delta: Matrix) -> float:
    """Σ x². Raises NotMergeable for values that are NaN or infinite."""
    energy = energy_of(delta)
    if not math.isfinite(energy):
        raise NotMergeable(
            f"a delta of shape {list(delta.shape)} becomes infinite or NaN",
            remedy="give smaller weights",
        )
    return energy


def norm1_of(delta: Matrix) -> float:
    """Σ |x|, in fp64."""
    return total(delta.shape, lambda rows: float(np.abs(delta[rows]).sum(dtype=np.float64)))


def scale(delta: Matrix, factor: float) -> None:
    """delta ← factor·delta, in place."""

    def work(rows: slice) -> None:
        np.multiply(delta[rows], factor, out=delta[rows])

    if factor != 1:
        each(delta.shape, work)
