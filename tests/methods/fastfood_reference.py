"""fastfood-v1 written down once more: integers, dense matrices, fp64; slow and plain."""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Iterator

import numpy as np

MASK = (1 << 64) - 1


def philox(key: int) -> Iterator[int]:
    """Philox-4x64-10 as Salmon et al. give it, from counter 1 on."""
    for counter in itertools.count(1):
        c = [counter & MASK, counter >> 64, 0, 0]
        k = [key & MASK, key >> 64]
        for turn in range(10):
            if turn:
                k = [(k[0] + 0x9E3779B97F4A7C15) & MASK, (k[1] + 0xBB67AE8584CAA73B) & MASK]
            one, two = 0xD2E7470EE14C6C93 * c[0], 0xCA5A826395121157 * c[2]
            c = [(two >> 64) ^ c[1] ^ k[0], two & MASK, (one >> 64) ^ c[3] ^ k[1], one & MASK]
        yield from c


def hadamard(size: int) -> np.ndarray:
    found = np.ones((1, 1))
    while len(found) < size:
        found = np.kron(np.array([[1.0, 1.0], [1.0, -1.0]]), found)
    return found


def power(number: int) -> int:
    found = 1
    while found < number:
        found *= 2
    return found


def matrix(d: int, size: int, seed: int, name: str) -> np.ndarray:
    """P: (size, d) in fp64."""
    text = b"adapterhub fastfood-v1\x00" + seed.to_bytes(8, "little") + name.encode()
    words = philox(int.from_bytes(hashlib.sha256(text).digest()[:16], "little"))
    length = max(power(size), power(d))
    bits = [(word >> i) & 1 for word in itertools.islice(words, -(-d // 64)) for i in range(64)]
    signs = np.zeros((length, d))
    for i in range(d):
        signs[i, i] = -1.0 if bits[i] else 1.0
    drawn = list(itertools.islice(words, length))
    order = sorted(range(length), key=lambda i: drawn[i])
    shuffle = np.zeros((length, length))
    shuffle[np.arange(length), order] = 1.0
    normal = [
        sum(word.bit_count() for word in itertools.islice(words, 4)) - 128 for _ in range(length)
    ]
    full = hadamard(length)
    made = full @ np.diag(np.array(normal, float)) @ shuffle @ full @ signs
    return made[:size] / np.sqrt(size * sum(g * g for g in normal))
