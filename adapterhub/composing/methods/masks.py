"""Which elements of a delta remain, and the rest set to zero, in place.

By magnitude: the exact k largest, by a radix histogram on the bits of |x| (for floats that are not
negative the order of their bits is their own); among equal ones the earlier in row-major order come
first. By chance: the raw words of a Philox generator (counter-based: Salmon et al., SC 2011) are
compared as integers, and each element has its own place in the stream, so that masks are the same
on every machine, whatever the blocks and threads.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from threading import Lock

import numpy as np

from adapterhub.composing.blocks import blocks, each, norm1_of, scale
from adapterhub.composing.factored import Matrix

Values = Callable[[slice], Matrix]  # rows → fp32, whose magnitudes are compared

_HALF = 1 << 16
_TINY = 1e-7  # a share so small is not blown up to the whole


@dataclass(frozen=True)
class Largest:
    """The elements whose magnitude has bits above `key`, and of those that have just these bits all
    (`ties` is None), or the first `ties[row]` of the block that begins with that row."""

    key: int
    ties: dict[int, int] | None = None

    def mask(self, rows: slice, values: Matrix) -> Matrix:
        """True where an element is among the largest. `values`: those of the block `rows`."""
        bits = magnitudes(values)
        if self.ties is None:
            return bits >= self.key
        kept = bits > self.key
        first = np.flatnonzero(bits == self.key)[: self.ties[rows.start]]
        kept.reshape(-1)[first] = True
        return kept


def largest(shape: tuple[int, ...], values: Values, count: int) -> Largest:
    """The `count` largest magnitudes of a matrix of this shape, in three or four passes."""
    if count >= shape[0] * shape[1]:
        return Largest(0)
    if count <= 0:
        return Largest(1 << 31)
    upper, rest, _ = place(_histogram(shape, values, None), count)
    lower, needed, equal = place(_histogram(shape, values, upper), rest)
    key = upper * _HALF + lower
    return Largest(key, None if needed == equal else _quotas(shape, values, key, needed))


def magnitudes(values: Matrix) -> Matrix:
    """Those of |x|, as integers that have its order."""
    return np.ascontiguousarray(values, np.float32).view(np.uint32) & np.uint32(0x7FFFFFFF)


def _histogram(shape: tuple[int, ...], values: Values, upper: int | None) -> Matrix:
    """How many elements have each upper half of the bits; or each lower half, below one upper."""
    counts, lock = np.zeros(_HALF, np.int64), Lock()

    def work(rows: slice) -> None:
        bits = magnitudes(values(rows)).reshape(-1)
        halves = bits >> 16
        if upper is not None:
            halves = bits[halves == upper] & np.uint32(_HALF - 1)
        found = np.bincount(halves, minlength=_HALF)
        with lock:
            counts.__iadd__(found)

    each(shape, work)
    return counts


def place(counts: Matrix, rank: int) -> tuple[int, int, int]:
    """Where the `rank`-th largest lies, its rank among those there, and how many they are."""
    above = np.cumsum(counts[::-1])
    at = int(np.searchsorted(above, rank))
    there = int(counts[::-1][at])
    return len(counts) - 1 - at, rank - int(above[at]) + there, there


def _quotas(shape: tuple[int, ...], values: Values, key: int, needed: int) -> dict[int, int]:
    """How many of the elements at `key` each block keeps: the first `needed` of all."""
    found = each(shape, lambda rows: int(np.count_nonzero(magnitudes(values(rows)) == key)))
    quotas = {}
    for rows, here in zip(blocks(shape), found, strict=True):
        quotas[rows.start] = min(here, needed)
        needed -= quotas[rows.start]
    return quotas


# --- by magnitude -----------------------------------------------------------------------------


def kept_of(size: int, density: float) -> int:
    """⌊density · size⌋ elements, as PEFT and mergekit count, but one at least."""
    return min(size, max(1, int(density * size)))


def keep_largest(delta: Matrix, density: float, *, rescale: bool = False) -> None:
    """Zero all but the share `density` of largest magnitude. `rescale`: restores Σ|x|."""
    count = kept_of(delta.size, density)
    if count < delta.size:
        _keep(delta, count, 0, rescale)


def drop_outliers(delta: Matrix, density: float, gamma: float, *, rescale: bool = False) -> None:
    """Zero the ⌊gamma·n⌋ largest, and the smallest, so that ⌊density·n⌋ remain between them.

    Where both cannot be, density wins: fewer of the largest go. `rescale`: restores Σ|x|.
    """
    count = kept_of(delta.size, density)
    top = min(int(gamma * delta.size), delta.size - count)
    if count < delta.size:
        _keep(delta, count, top, rescale)


def _keep(delta: Matrix, count: int, top: int, rescale: bool) -> None:
    """Zero all but `count` elements below the `top` largest."""
    before = norm1_of(delta) if rescale else 0.0
    outer = largest(delta.shape, lambda rows: delta[rows], top + count)
    inner = largest(delta.shape, lambda rows: delta[rows], top)

    def work(rows: slice) -> None:
        block = delta[rows]
        kept = outer.mask(rows, block)
        if top:
            kept &= ~inner.mask(rows, block)
        np.copyto(block, 0, where=~kept)

    each(delta.shape, work)
    if rescale:
        after = norm1_of(delta)
        scale(delta, before / after if after > _TINY * before else 1.0)


# --- by chance --------------------------------------------------------------------------------


def drop_at_random(delta: Matrix, density: float, seed: int, number: int) -> None:
    """Zero each element with probability 1 − density. `number`: of the input, for its own stream.

    The probability is rounded to a multiple of 2⁻³².
    """
    limit = _limits(np.array(density))

    def work(rows: slice) -> None:
        dropped = _uniform(rows, delta.shape[1], seed, number) >= limit
        np.copyto(delta[rows], 0, where=dropped)

    if density < 1:
        each(delta.shape, work)


def drop_by_rank(
    delta: Matrix, density: float, epsilon: float, rescale: bool, seed: int, number: int
) -> None:
    """Zero each element by chance, the smaller its rank in its row, the likelier.

    Of n elements in a row the one of rank r = 0 … n-1 by ascending magnitude (of equal ones the
    earlier first) remains with probability p_r = density - epsilon + 2·epsilon·r/(n-1); alone in
    its row, with density. `rescale`: what remains is divided by its p_r.
    """
    columns = delta.shape[1]
    steps = np.arange(columns) / (columns - 1) if columns > 1 else np.full(columns, 0.5)
    shares = density - epsilon + 2 * epsilon * steps
    limits, factors = _limits(shares), (1 / shares).astype(np.float32)

    def work(rows: slice) -> None:
        block = delta[rows]
        ranks = _ranks(block)
        if rescale:
            block *= factors[ranks]
        dropped = _uniform(rows, columns, seed, number) >= limits[ranks]
        np.copyto(block, 0, where=dropped)

    if density < 1:
        each(delta.shape, work)


def _limits(shares: Matrix) -> Matrix:
    """The 32-bit integers below which a share of them lies."""
    return np.maximum(1, np.minimum(shares * 2.0**32, 2**32 - 1)).astype(np.uint32)


def _ranks(block: Matrix) -> Matrix:
    """Of each element in its row, by ascending magnitude."""
    count, columns = block.shape
    keys = magnitudes(block).astype(np.uint64) << 32
    keys |= np.arange(columns, dtype=np.uint64)
    keys.sort(axis=1)
    keys &= np.uint64(0xFFFFFFFF)
    places = keys.view(np.int64)
    places += np.arange(count)[:, None] * columns
    ranks = np.empty(block.size, np.int32)
    ranks[places] = np.arange(columns, dtype=np.int32)
    return ranks.reshape(block.shape)


def _uniform(rows: slice, columns: int, seed: int, number: int) -> Matrix:
    """32 random bits for each element of these rows: (rows, columns), uint32.

    A row begins with its own count of the generator, which gives four words of 64 bits for each;
    the input's number is the count's highest word. Of a word the lower half comes first.
    """
    counts = -(-columns // 8)
    start = (number << 192) + rows.start * counts
    stream = np.random.Philox(key=seed, counter=start)
    words = stream.random_raw((rows.stop - rows.start) * counts * 4)
    bits: Matrix = words.astype("<u8", copy=False).view("<u4")
    return bits.reshape(rows.stop - rows.start, -1)[:, :columns]
