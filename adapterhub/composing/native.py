"""What a training did, without a LoRA: its biases alone, or the elements that changed most."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from adapterhub.adapter import REPLACE, Adapter, BaseClaim
from adapterhub.composing.checkpoints import Checkpoints, Pair
from adapterhub.composing.factored import Matrix
from adapterhub.composing.saving import DROP, Wanted, head_of, settle_rest
from adapterhub.errors import NotMergeable, NotSupported
from adapterhub.methods.shapes import PARAMETERS
from adapterhub.tensorfile import ArrayTensor, Tensor

Progress = Callable[[int], None]
_BINS = 1 << 16


def biases(
    both: Checkpoints, wanted: Wanted, claim: BaseClaim, progress: Progress
) -> dict[str, Any]:
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
    tensors = {place: t for place, t in kept.tensors.items()}
    if not any(role == f"{REPLACE}bias" for _, role in tensors):
        raise NotSupported(
            "no bias differs between the two checkpoints",
            remedy="give a rank, for a LoRA of the weights",
        )
    task, labels = head_of(both, kept)
    modules = _modules(tensors)
    return {
        "adapter": Adapter("bitfit", "native", {}, modules, claim, task, labels),
        "saved": kept.saved,
        "dropped": left.dropped,
        "changed": kept.changed + left.changed,
    }


def _modules(tensors: dict[tuple[str, str], Tensor]) -> dict[str, dict[str, Tensor]]:
    modules: dict[str, dict[str, Tensor]] = {}
    for (module, role), tensor in tensors.items():
        modules.setdefault(module, {})[role] = tensor
    return modules


# --- the largest changes ----------------------------------------------------------------------


def sparse(
    both: Checkpoints, share: float, wanted: Wanted, claim: BaseClaim, progress: Progress
) -> dict[str, Any]:
    """The ⌈share · n⌉ elements that changed most of all n that both checkpoints have, by value.

    What is no weight or bias, or has another shape in the base, is saved whole or refused with the
    rest. The threshold is exact: found by counting the bits of |Δ| in two passes, 16 at a time;
    among equals the first in the order of the files count.
    """
    own = [p for p in both.pairs if p.old and p.parameter in PARAMETERS and not p.expert]
    names = {pair.name for pair in own}
    rest = settle_rest([p for p in both.pairs if p.name not in names], wanted, progress)
    number = math.ceil(share * sum(math.prod(pair.shape) for pair in own))
    least, equal = _threshold(own, number)
    modules: dict[str, dict[str, Tensor]] = _modules(dict(rest.tensors))
    shapes, changed = {}, 0
    for pair, delta in _deltas(own, progress):
        changed += 1
        places, values, equal = _largest(delta, least, equal)
        if not len(places):
            continue
        roles = modules.setdefault(pair.module, {})
        roles[f"{pair.parameter}.indices"] = ArrayTensor(places)
        roles[f"{pair.parameter}.values"] = ArrayTensor(values)
        shapes[pair.name] = list(pair.shape)
    if not shapes:
        raise NotSupported("no weight or bias differs between the two checkpoints")
    task, labels = head_of(both, rest)
    return {
        "adapter": Adapter("fishmask", "native", {"shapes": shapes}, modules, claim, task, labels),
        "saved": rest.saved,
        "dropped": rest.dropped,
        "changed": changed + rest.changed,
    }


def _deltas(pairs: Sequence[Pair], progress: Progress) -> Iterator[tuple[Pair, Matrix]]:
    """The delta of each that changed, in the formula's orientation, flat."""
    for pair in pairs:
        delta = pair.delta()
        if delta is not None:
            yield pair, (delta.T if pair.transposed else delta).reshape(-1)
        progress(pair.new.nbytes + (pair.old.nbytes if pair.old else 0))


def _bits(delta: Matrix) -> Matrix:
    """Those of |Δ|, in the order of the values."""
    return np.ascontiguousarray(delta).view(np.uint32) & np.uint32(0x7FFF_FFFF)


def _threshold(pairs: Sequence[Pair], number: int) -> tuple[int, int]:
    """The bits of the `number`th largest |Δ|, and how many that are equal to it are taken."""
    counts = np.zeros(_BINS, np.int64)
    for _, delta in _deltas(pairs, lambda amount: None):
        counts += np.bincount(_bits(delta) >> np.uint32(16), minlength=_BINS)
    counts[0] = 0 if counts[1:].sum() >= number else counts[0]
    high, left = _bin(counts, number)
    lows = np.zeros(_BINS, np.int64)
    for _, delta in _deltas(pairs, lambda amount: None):
        bits = _bits(delta)
        mine = bits[bits >> np.uint32(16) == high] & np.uint32(0xFFFF)
        lows += np.bincount(mine, minlength=_BINS)
    if high == 0:
        lows[0] = 0  # what did not change is never taken
    low, left = _bin(lows, left)
    return max(1, high << 16 | low), left


def _bin(counts: Matrix, number: int) -> tuple[int, int]:
    """Where the `number`th from above lies, and how many of that bin belong to it."""
    above = np.cumsum(counts[::-1])
    if number > above[-1]:
        return 0, int(counts[0])
    place = int(np.searchsorted(above, number))
    before = int(above[place - 1]) if place else 0
    return len(counts) - 1 - place, number - before


def _largest(delta: Matrix, least: int, equal: int) -> tuple[Matrix, Matrix, int]:
    """Places and values above the threshold, and the first `equal` at it."""
    bits = _bits(delta)
    taken = bits > np.uint32(least)
    ties = np.flatnonzero(bits == np.uint32(least))[:equal]
    taken[ties] = True
    places = np.flatnonzero(taken).astype(np.int64)
    return places, delta[places], equal - len(ties)
