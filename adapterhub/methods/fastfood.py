"""fastfood-v1: a random projection of d numbers onto D, the same on every machine.

Fastfood (Le, Sarlos, Smola, ICML 2013), scaled as in Aghajanyan et al.,
https://arxiv.org/abs/2012.13255: with L the smallest power of two not below D and d, x padded with
zeros to L, B random signs, Π a permutation, G of mean 0 and variance 1, H the Hadamard matrix of
±1 in natural order,

    P(x) = (H · G · Π · H · B · x)[:D] / √(D · Σ G²)

so that a vector keeps its length on average. Exactly:

    key        the first 16 bytes, as two little-endian words, of
               SHA-256("adapterhub fastfood-v1\\0" ‖ seed as 8 bytes, little-endian ‖ name, UTF-8)
    words      Philox-4x64-10 (Salmon et al., SC 2011) with this key: the four words of counter 1,
               those of counter 2, …
    B          sign i is −1 where bit i mod 64 of word ⌊i/64⌋ is set; ⌈d/64⌉ words
    Π          of the next L words, (Π y)[i] = y[j] where word j is the ith smallest; ties in order
    G          g[i] = k[i] − 128, k the ones among the 256 bits of the next four words for each i:
               binomial, and so near to normal that nothing else has to be the same on all machines;
               its variance of 64 leaves the formula with √(ΣG²)
    H          butterflies (a, b) → (a + b, a − b) in fp32 over the strides 1, 2, 4 …, of which
               those from the first power of two ≥ d on only repeat the first transform
    1/√        in fp64, of the whole number D · Σ g²; rounded to fp32, multiplied in fp32
"""

from __future__ import annotations

import hashlib
import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

NAME = "fastfood-v1"
_BLOCK = 1 << 20
_ONES = np.array([number.bit_count() for number in range(1 << 16)], np.uint8)
Floats = NDArray[np.float32]


def project(vector: Floats, size: int, seed: int, name: str) -> Floats:
    """P(vector): fp32 (size,). `name` is that of the parameter: each has a projection of its own.

    Takes 24 bytes for each of the L elements while it runs.
    """
    stream = _stream(seed, name)
    inner = _power(len(vector))
    length = max(_power(size), inner)
    first = np.zeros(inner, np.float32)
    first[: len(vector)] = vector * _signs(stream, len(vector))
    _transform(first)
    permutation = _permutation(stream, length)
    mixed = first[permutation & (inner - 1)]
    del permutation
    square = _times_normal(mixed, stream)
    _transform(mixed)
    found: Floats = mixed[:size] * np.float32(1.0 / math.sqrt(size * square))
    return found


def _power(number: int) -> int:
    """The smallest power of two that is not below."""
    return 1 << max(0, number - 1).bit_length()


def _stream(seed: int, name: str) -> np.random.Philox:
    text = b"adapterhub fastfood-v1\0" + seed.to_bytes(8, "little") + name.encode()
    key = int.from_bytes(hashlib.sha256(text).digest()[:16], "little")
    return np.random.Philox(key=key, counter=0)


def _words(stream: np.random.Philox, count: int) -> NDArray[np.uint64]:
    words: NDArray[np.uint64] = stream.random_raw(count)
    return words


def _signs(stream: np.random.Philox, count: int) -> Floats:
    words = _words(stream, -(-count // 64)).astype("<u8")
    bits = np.unpackbits(words.view(np.uint8), bitorder="little")[:count]
    return np.where(bits, np.float32(-1.0), np.float32(1.0))


def _permutation(stream: np.random.Philox, length: int) -> NDArray[np.int64]:
    return np.argsort(_words(stream, length), kind="stable")


def _times_normal(values: Floats, stream: np.random.Philox) -> int:
    """Multiplies in place; the sum of the squares, a whole number."""
    square = 0
    for start in range(0, len(values), _BLOCK):
        block = values[start : start + _BLOCK]
        words = _words(stream, 4 * len(block))
        ones = _ONES[words.view(np.uint16)].reshape(len(block), 16)
        normal = ones.sum(axis=1, dtype=np.int16).astype(np.int64) - 128
        square += int((normal * normal).sum())
        block *= normal.astype(np.float32)
    return square


def _transform(values: Floats) -> None:
    """Walsh–Hadamard in place, by blocks that stay in the cache as long as they can."""
    if len(values) > _BLOCK:
        for start in range(0, len(values), _BLOCK):
            _butterflies(values[start : start + _BLOCK], 1)
    _butterflies(values, min(_BLOCK, len(values)) if len(values) > _BLOCK else 1)


def _butterflies(values: Floats, stride: int) -> None:
    half: Any = np.empty(len(values) // 2, np.float32)
    while stride < len(values):
        pairs = values.reshape(-1, 2, stride)
        low, high = pairs[:, 0], pairs[:, 1]
        difference = np.subtract(low, high, out=half.reshape(low.shape))
        np.add(low, high, out=low)
        high[...] = difference
        stride *= 2
