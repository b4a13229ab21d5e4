"""A dense change out of single entries, for methods that train those."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from adapterhub.errors import InvalidAdapter
from adapterhub.methods.generic import REMEDY
from adapterhub.methods.meaning import Values
from adapterhub.tensorfile import shown


def places(module: str, indices: NDArray[Any], size: int) -> NDArray[np.int64]:
    """Raises InvalidAdapter for what is no place among `size`; indices may be stored as floats."""
    found = indices.astype(np.int64 if indices.dtype.kind in "iu" else np.float64)
    wrong = ~((found >= 0) & (found < size) & (found == np.floor(found)))
    if wrong.any():
        raise InvalidAdapter(
            f"{shown(module)}: {found[wrong][0]} is no place among {size}", remedy=REMEDY
        )
    return found.astype(np.int64)


def scattered(shape: tuple[int, ...], flat: NDArray[np.int64], values: Values) -> Values:
    """`values` at these places of `shape` in C order, −0 elsewhere; what meets adds up in order."""
    found = np.full(math.prod(shape), -0.0, np.float32)
    np.add.at(found, flat, values)
    return found.reshape(shape)
