"""The merge formula a second time, sharing nothing with the package: loops, libm, fractions."""

from __future__ import annotations

import ctypes
import ctypes.util
import math
from fractions import Fraction

import numpy as np

_libm = ctypes.CDLL(ctypes.util.find_library("m"))
fmaf = _libm.fmaf  # correctly rounded, as C99 demands and glibc and Apple's libm deliver
fmaf.argtypes, fmaf.restype = [ctypes.c_float] * 3, ctypes.c_float

# precision in bits, exponent of the smallest subnormal, of the first power that overflows
FORMATS = {"float32": (24, -149, 128), "float16": (11, -24, 16), "bfloat16": (8, -133, 128)}


def round_fraction(value: Fraction, fmt: str, sign_of_zero: float = 1.0) -> float:
    """Nearest number of the format, ties to even, as a Python float; may be infinite."""
    precision, smallest, overflow = FORMATS[fmt]
    if value == 0:
        return math.copysign(0.0, sign_of_zero)
    size = abs(value)
    exponent = size.numerator.bit_length() - size.denominator.bit_length()
    if Fraction(2) ** exponent > size:
        exponent -= 1
    unit = Fraction(2) ** max(exponent - precision + 1, smallest)
    rounded = round(size / unit) * unit  # Python rounds fractions half to even
    result = math.inf if rounded >= Fraction(2) ** overflow else float(rounded)
    return math.copysign(result, value)


def fma_fraction(a: float, b: float, c: float) -> float:
    exact = Fraction(a) * Fraction(b) + Fraction(c)
    product_sign = math.copysign(1, a) * math.copysign(1, b)
    both_negative = product_sign < 0 and math.copysign(1, c) < 0
    return round_fraction(exact, "float32", -1.0 if both_negative else 1.0)


def merge(weight, factors, fma=fmaf) -> np.ndarray:
    """`weight` (out, in); element by element in Python floats."""
    out = np.empty(weight.shape, np.float64)
    for i, j in np.ndindex(weight.shape):
        acc = float(weight[i, j])
        for factor in factors:
            t = 0.0
            for k in range(factor.a.shape[0]):
                t = fma(float(factor.b[i, k]), float(factor.a[k, j]), t)
            acc = fma(float(factor.scale), t, acc)
        out[i, j] = _round(acc, weight.dtype.name)
    return out.astype(weight.dtype)  # exact: the values are already numbers of the format


def _round(value: float, fmt: str) -> float:
    return round_fraction(Fraction(value), fmt, math.copysign(1, value))
