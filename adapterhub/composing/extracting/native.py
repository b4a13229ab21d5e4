"""What a training did, without a LoRA: its biases alone, or the elements that changed most."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence

import numpy as np

from adapterhub.adapter import REPLACE, Adapter, BaseClaim
from adapterhub.composing.building import by_module
from adapterhub.composing.extracting.checkpoints import Checkpoints, Pair
from adapterhub.composing.extracting.saving import DROP, Found, Wanted, head_of, settle_rest
from adapterhub.composing.factored import Cut, Matrix
from adapterhub.composing.methods.masks import magnitudes, place
from adapterhub.composing.window import Progress
from adapterhub.errors import NotMergeable, NotSupported
from adapterhub.methods.shapes import PARAMETERS
from adapterhub.tensorfile import ArrayTensor

_BINS = 1 << 16
_CHUNK = 1 << 22


def biases(both: Checkpoints, wanted: Wanted, claim: BaseClaim, progress: Progress) -> Found:
    """BitFit: every bias that changed, whole, and a head that is new or changed.

    Raises NotMergeable for other changes, unless the rest is dropped; NotSupported for none.
    """
    own = [pair for pair in both.pairs if pair.parameter == "bias" or pair.head]
    names = {pair.name for pair in own}
    kept = settle_rest(own, Wanted(), progress)
    others = [pair for pair in both.pairs if pair.name not in names]
    left = settle_rest(others, Wanted(rest=DROP), progress)
    if left.dropped and wanted.rest != DROP:
        raise NotMergeable(
            f"{len(left.dropped)} tensors beside the biases changed",
            details=left.dropped,
            remedy="--rest drop leaves them out, and lists them",
        )
    tensors = dict(kept.tensors)
    if not any(role == f"{REPLACE}bias" for _, role in tensors):
        raise NotSupported(
            "no bias differs between the two checkpoints",
            remedy="give a rank, for a LoRA of the weights",
        )
    task, labels = head_of(both, kept)
    modules = by_module(tensors)
    return Found(
        Adapter("bitfit", "native", {}, modules, claim, task, labels),
        kept.saved,
        left.dropped,
        kept.changed + left.changed,
    )


# --- the largest changes ----------------------------------------------------------------------


def sparse(
    both: Checkpoints, share: float, wanted: Wanted, claim: BaseClaim, progress: Progress
) -> Found:
    """The ⌈share · n⌉ elements that changed most of all n that both checkpoints have, by value.

    What is no weight or bias, or has another shape in the base, is saved whole or refused with the
    rest. The threshold is exact: found by counting the bits of |Δ| in two passes, 16 at a time;
    among equals the first in the order of the files count.
    """
    pairs = [pair for pair in both.pairs if not pair.shared]
    own = [
        pair
        for pair in pairs
        if pair.old and pair.parameter in PARAMETERS and pair.shape and not pair.expert
    ]
    names = {pair.name for pair in own}
    rest = settle_rest([pair for pair in pairs if pair.name not in names], wanted, progress)
    number = math.ceil(share * sum(math.prod(pair.shape) for pair in own))
    least, equal = _threshold(own, number)
    modules = by_module(rest.tensors)
    shapes, changed, elements = {}, 0, 0
    energies, kept = [], []
    for pair, delta in _deltas(own, progress):
        changed += 1
        energies.append(_energy(delta))
        places, values, equal = _largest(delta, least, equal)
        if not len(places):
            continue
        roles = modules.setdefault(pair.module, {})
        roles[f"{pair.parameter}.indices"] = ArrayTensor(places)
        roles[f"{pair.parameter}.values"] = ArrayTensor(values)
        shapes[pair.name] = list(pair.shape)
        elements += len(places)
        kept.append(_energy(values))
    if not shapes:
        raise NotSupported("no weight or bias differs between the two checkpoints")
    task, labels = head_of(both, rest)
    return Found(
        Adapter("fishmask", "native", {"shapes": shapes}, modules, claim, task, labels),
        rest.saved,
        rest.dropped,
        changed + rest.changed,
        elements=elements,
        error=Cut(elements, math.fsum(kept), math.fsum(energies)).error,
    )


def _energy(values: Matrix) -> float:
    """Σ x², in fp64."""
    parts = range(0, len(values), _CHUNK)
    return math.fsum(
        float(np.square(values[start : start + _CHUNK], dtype=np.float64).sum()) for start in parts
    )


def _deltas(pairs: Sequence[Pair], progress: Progress) -> Iterator[tuple[Pair, Matrix]]:
    """The delta of each that changed, in the formula's orientation, flat."""
    for pair in pairs:
        delta = pair.delta()
        if delta is not None:
            yield pair, (delta.T if pair.transposed else delta).reshape(-1)
        progress(pair.nbytes)


def _chunks(delta: Matrix) -> Iterator[tuple[int, Matrix]]:
    """The bits of |Δ|, in the order of the values, a part at a time, and where it begins."""
    for start in range(0, len(delta), _CHUNK):
        yield start, magnitudes(delta[start : start + _CHUNK])


def _threshold(pairs: Sequence[Pair], number: int) -> tuple[int, int]:
    """The bits of the `number`th largest |Δ|, and how many that are equal to it are taken.

    (0, 0) where fewer changed: all that did are above it.
    """
    counts = _counted(pairs, lambda bits: bits[bits != 0] >> np.uint32(16))
    if number >= counts.sum():
        return 0, 0
    high, left, _ = place(counts, number)
    lows = _counted(
        pairs, lambda bits: bits[(bits >> np.uint32(16) == high) & (bits != 0)] & np.uint32(0xFFFF)
    )
    low, left, _ = place(lows, left)
    return high << 16 | low, left


def _counted(pairs: Sequence[Pair], digits: Callable[[Matrix], Matrix]) -> Matrix:
    counts = np.zeros(_BINS, np.int64)
    for _, delta in _deltas(pairs, lambda amount: None):
        for _, bits in _chunks(delta):
            counts += np.bincount(digits(bits), minlength=_BINS)
    return counts


def _largest(delta: Matrix, least: int, equal: int) -> tuple[Matrix, Matrix, int]:
    """Places and values above the threshold and the first `equal` at it; how many remain."""
    found = []
    for start, bits in _chunks(delta):
        taken = bits > np.uint32(least)
        if equal:
            ties = np.flatnonzero(bits == np.uint32(least))[:equal]
            taken[ties] = True
            equal -= len(ties)
        found.append(np.flatnonzero(taken).astype(np.int64) + start)
    places = np.concatenate(found)
    return places, delta[places], equal
