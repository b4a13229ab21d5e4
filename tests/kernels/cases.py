"""The one list of cases on which every kernel must give the reference's bits."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import ml_dtypes
import numpy as np

from adapterhub.kernels import Factor

DTYPES = (np.dtype(np.float32), np.dtype(np.float16), np.dtype(ml_dtypes.bfloat16))

# (out, in), ranks of the factors
SHAPES = [
    ((1, 1), (1,)),
    ((5, 7), (3,)),
    ((17, 3), (1, 4)),
    ((3, 33), (2, 1, 5)),
    ((31, 65), (8,)),
    ((2, 5), (300,)),
    ((1, 130), (2,)),
    ((130, 1), (2,)),
    ((4, 6), ()),
    ((4, 6), (0,)),
    ((4, 6), (0, 2)),
    ((0, 5), (2,)),
    ((5, 0), (2,)),
]


@dataclass(frozen=True)
class Case:
    name: str
    weight: np.ndarray  # (out, in)
    factors: tuple[Factor, ...]


def cases() -> Iterator[Case]:
    """Every case has a finite result."""
    rng = np.random.default_rng(20240607)
    for dtype in DTYPES:
        for shape, ranks in SHAPES:
            factors = tuple(_normal_factor(rng, shape, rank) for rank in ranks)
            weight = rng.standard_normal(shape).astype(np.float32).astype(dtype)
            yield Case(f"normal-{dtype}-{shape[0]}x{shape[1]}-r{ranks}", weight, factors)
        for make in (_subnormal, _zeros, _near_overflow, _cancelling, _mixed_exponents):
            yield Case(f"{make.__name__[1:]}-{dtype}", *make(rng, dtype))
    yield Case("double-rounding-outer", *_double_rounding_outer(rng))
    yield Case("double-rounding-inner", *_double_rounding_inner(rng))
    yield Case("double-rounding-subnormal", *_double_rounding_subnormal(rng))
    yield Case("strided", *_strided(rng))


def _normal_factor(rng, shape, rank):
    a = rng.standard_normal((rank, shape[1])).astype(np.float32)
    b = rng.standard_normal((shape[0], rank)).astype(np.float32) / np.float32(16)
    return Factor(a, b, np.float32(rng.uniform(-2, 2)))


def _powers(rng, shape, low, high):
    """Random signs and significands, exponents spread evenly over low … high-1."""
    significand = rng.uniform(1, 2, shape) * rng.choice([-1, 1], shape)
    return np.ldexp(significand, rng.integers(low, high, shape)).astype(np.float32)


def _subnormal(rng, dtype):
    exponent = {"float32": -126, "float16": -14, "bfloat16": -126}[dtype.name]
    shape = (9, 11)
    weight = _powers(rng, shape, exponent - 9, exponent + 2).astype(dtype)
    a = _powers(rng, (4, 11), exponent // 2 - 12, exponent // 2 + 2)
    b = _powers(rng, (9, 4), exponent // 2 - 12, exponent // 2 + 2)
    tiny = Factor(_powers(rng, (2, 11), -148, -120), _powers(rng, (9, 2), -20, 3), np.float32(1.25))
    return weight, (Factor(a, b, np.float32(0.75)), tiny)


def _zeros(rng, dtype):
    shape = (12, 13)
    zeros = np.array([0.0, -0.0], np.float32)
    few = np.array([0.0, -0.0, 1.0, -1.0], np.float32)
    factors = []
    for scale in (1.0, -1.0, 0.0, -0.0, -1e-45):
        b = rng.choice(zeros, (12, 2))
        b[6:] = rng.choice(few, (6, 2))
        factors.append(Factor(rng.choice(few, (2, 13)), b, np.float32(scale)))
    return rng.choice(zeros, shape).astype(dtype), tuple(factors)


def _near_overflow(rng, dtype):
    largest = float(ml_dtypes.finfo(dtype).max)
    unit = largest - float(np.nextafter(dtype.type(largest), dtype.type(0)))
    shape = (6, 8)
    weight = np.full(shape, largest).astype(dtype) * rng.choice([-1, 1], shape).astype(dtype)
    outward = rng.uniform(-3, 0.49, shape) * np.sign(weight.astype(np.float64)) * unit
    # Row 0 stops one float32 short of where the result would round to infinity.
    if dtype != np.float32:
        edge = np.nextafter(np.float32(largest + unit / 2), np.float32(0)) - np.float32(largest)
        outward[0] = np.sign(weight[0].astype(np.float64)) * edge
    eye = np.eye(6, dtype=np.float32)
    return weight, (Factor(outward.astype(np.float32), eye, np.float32(1)),)


def _cancelling(rng, dtype):
    """The delta is close to minus the weight, and its own terms cancel too."""
    shape = (7, 9)
    weight = rng.standard_normal(shape).astype(np.float32).astype(dtype)
    up = weight.astype(np.float32)
    noise = rng.standard_normal(shape).astype(np.float32) * np.float32(2.0**12)
    third = np.float32(1 / 3)
    a = np.concatenate([noise, up / third, -noise])
    eye = np.eye(7, dtype=np.float32)
    return weight, (Factor(a, np.concatenate([eye, eye, eye], axis=1), -third),)


def _mixed_exponents(rng, dtype):
    low, high = (-24, 12) if dtype == np.float16 else (-100, 100)
    weight = _powers(rng, (8, 10), low, high).astype(dtype)
    half = high // 2 - 3
    a = _powers(rng, (20, 10), -half if dtype == np.float16 else -60, half)
    b = _powers(rng, (8, 20), -half if dtype == np.float16 else -60, half)
    return weight, (Factor(a, b, np.float32(-0.3)), Factor(a[:5], b[:, :5], np.float32(1.7)))


def _double_rounding_outer(rng):
    """c · t is 2^-24 (1 - 2^-46): the float64 sum lands on a midpoint that the true sum misses."""
    weight = (1 + 2.0**-23 * rng.integers(0, 2**22, (8, 16))).astype(np.float32)
    weight *= rng.choice([-1, 1], weight.shape).astype(np.float32)
    t = np.full((1, 16), 1 - 2.0**-23, np.float32)
    b = rng.choice([-1, 1], (8, 1)).astype(np.float32)
    return weight, (Factor(t, b, np.float32(2.0**-24 * (1 + 2.0**-23))),)


def _double_rounding_inner(rng):
    """The same inside the sum over k."""
    start = (1 + 2.0**-23 * rng.integers(0, 2**22, 16)).astype(np.float32)
    a = np.stack([start, np.full(16, 1 - 2.0**-23, np.float32)])
    nudge = np.float32(2.0**-24 * (1 + 2.0**-23))
    b = np.array([[s, t * nudge] for s in (1, -1) for t in (1, -1)], np.float32)
    return np.zeros((4, 16), np.float32), (Factor(a, b, np.float32(1)),)


def _double_rounding_subnormal(rng):
    """Half of the smallest subnormal, less 2^-196, beside a weight of subnormal and normal size."""
    units = np.concatenate([rng.integers(0, 2**23, 24), [0, 1, 2**23 - 1, 2**23, 2**23 + 1]])
    weight = np.ldexp(units.astype(np.float64), -149).astype(np.float32)[None] * np.ones((2, 1))
    t = np.full((1, units.size), 1 - 2.0**-23, np.float32)
    b = np.array([[1], [-1]], np.float32)
    c = np.float32(2.0**-75 * (1 + 2.0**-23))
    return weight.astype(np.float32), (
        Factor(t * np.float32(2.0**-75), b, c),
        Factor(t * np.float32(2.0**-75), b, -c * np.float32(3)),
    )


def _strided(rng):
    weight = rng.standard_normal((24, 10)).astype(np.float16).T[::-1, ::2]
    a = rng.standard_normal((12, 6)).astype(np.float32).T[::2]
    b = rng.standard_normal((3, 10)).astype(np.float32).T
    return weight, (Factor(a, b, np.float32(0.5)),)
