"""The dtypes of safetensors: their spelling, their size, their numpy type.

The table is that of the format's reference implementation (safetensors 0.8). Three of its types
are narrower than a byte and are packed without padding; numpy has no such arrays, so they are
known by size only.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

import ml_dtypes
import numpy as np

# 2^53 bytes: beyond it neither canonical JSON nor any disk follows. It also keeps `(0, 2^62)`
# away from numpy, which cannot hold that shape although it has no element.
MAX_BYTES = 2**53

# numpy before 2.0 stops here; numpy 2 and torch hold 64 dimensions.
MAX_RANK = 32

DTYPES: Mapping[str, np.dtype[Any]] = MappingProxyType(
    {
        "BOOL": np.dtype(np.bool_),
        "U8": np.dtype("u1"),
        "I8": np.dtype("i1"),
        "F8_E5M2": np.dtype(ml_dtypes.float8_e5m2),
        "F8_E4M3": np.dtype(ml_dtypes.float8_e4m3fn),
        "F8_E8M0": np.dtype(ml_dtypes.float8_e8m0fnu),
        "F8_E4M3FNUZ": np.dtype(ml_dtypes.float8_e4m3fnuz),
        "F8_E5M2FNUZ": np.dtype(ml_dtypes.float8_e5m2fnuz),
        "I16": np.dtype("<i2"),
        "U16": np.dtype("<u2"),
        "F16": np.dtype("<f2"),
        "BF16": np.dtype(ml_dtypes.bfloat16),
        "I32": np.dtype("<i4"),
        "U32": np.dtype("<u4"),
        "F32": np.dtype("<f4"),
        "C64": np.dtype("<c8"),
        "F64": np.dtype("<f8"),
        "I64": np.dtype("<i8"),
        "U64": np.dtype("<u8"),
    }
)

BITS: Mapping[str, int] = MappingProxyType(
    {"F4": 4, "F6_E2M3": 6, "F6_E3M2": 6}
    | {name: 8 * dtype.itemsize for name, dtype in DTYPES.items()}
)

_SPELLINGS = {dtype: name for name, dtype in DTYPES.items()}


def spelling(dtype: np.dtype[Any]) -> str | None:
    """`float32` → `F32`, whatever its byte order; None where safetensors has no such type."""
    return _SPELLINGS.get(dtype.newbyteorder("<"))


def alignment(dtype: str) -> int:
    """Bytes that an offset of this dtype should be a multiple of; 1 for packed types."""
    return max(1, BITS[dtype] // 8) if BITS[dtype] % 8 == 0 else 1


def storage_bytes(dtype: str, shape: Sequence[int]) -> int:
    """Bytes of a tensor of this dtype and shape.

    Raises:
        ValueError: unknown dtype; a shape that is no list of at most 32 whole numbers ≥ 0, or
            stands for more than 2^53 bytes (an extent of 0 counts as 1 here), or does not end
            on a whole byte.
    """
    if dtype not in BITS:
        raise ValueError(f"dtype {_short(dtype)} is none of {', '.join(sorted(BITS))}")
    if len(shape) > MAX_RANK:
        raise ValueError(f"shape has {len(shape)} dimensions, at most {MAX_RANK} are supported")
    for extent in shape:
        if type(extent) is not int or extent < 0:
            raise ValueError(f"shape holds {_short(extent)}, expected whole numbers from 0 on")
    if math.prod(max(extent, 1) for extent in shape) * BITS[dtype] > 8 * MAX_BYTES:
        raise ValueError(f"shape {_short(list(shape))} of {dtype} exceeds 2^53 bytes")
    bits = math.prod(shape) * BITS[dtype]
    if bits % 8:
        raise ValueError(f"shape {_short(list(shape))} of {dtype} is {bits} bits, no whole bytes")
    return bits // 8


def _short(value: object) -> str:
    shown = ascii(value)
    return shown if len(shown) <= 80 else f"{shown[:77]}..."
