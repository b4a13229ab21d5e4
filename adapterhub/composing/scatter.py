"""SHiRA as PEFT has it, composed: the union of the places, and at each the weighted sum.

PEFT gives every module r·(in + out) places, by one r. The union takes the smallest r with room for
all of it; what is left over names a place again and adds nothing there.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from adapterhub.composing.factored import Matrix
from adapterhub.composing.inputs import Input
from adapterhub.composing.tensors import Tensors, rounded, value_of
from adapterhub.errors import NotMergeable
from adapterhub.methods.scattered import places
from adapterhub.tensorfile import ArrayTensor, shown

# Of the config, how many places there are and how they were chosen: no meaning beside them.
CHOICE = ("r", "mask_type", "random_seed", "init_weights")
_VALUES, _PLACES = "shira_weight", "shira_indices"
_SIDE = 1 << 31
Scattered = tuple[Matrix, Matrix]  # rows and columns (2, n), values (n,) in fp64


def scattered(
    inputs: Sequence[Input], weights: Sequence[float], own: Sequence[Tensors]
) -> tuple[Tensors, dict[str, Any]]:
    """The tensors and the config. Raises NotMergeable."""
    unions = {}
    for module in sorted({module for tensors in own for module, _ in tensors}):
        unions[module] = _union_of(module, inputs, weights, own)
    rank = max(-(-values.size // sides) for sides, (_, values) in unions.values())
    made: Tensors = {}
    for module, (sides, both) in unions.items():
        where, values = _padded(both, rank * sides)
        made[module, _PLACES] = ArrayTensor(where.astype(np.int32))
        made[module, _VALUES] = rounded((module, _VALUES), values)
    return made, {**inputs[0].adapter.config, "r": rank}


def _union_of(
    module: str, inputs: Sequence[Input], weights: Sequence[float], own: Sequence[Tensors]
) -> tuple[int, Scattered]:
    """in + out, places and values of one module."""
    found, sides = [], set()
    for source, weight, tensors in zip(inputs, weights, own, strict=True):
        if (module, _VALUES) not in tensors:
            continue
        values = value_of(source, (module, _VALUES), tensors[module, _VALUES])
        sides.add(_sides(source, module, len(values)))
        where = tensors[module, _PLACES].read()
        found.append((np.stack([places(module, one, _SIDE) for one in where]), weight * values))
    if len(sides) > 1:
        said = " and ".join(map(str, sorted(sides)))
        raise NotMergeable(
            f"{shown(module)} has {said} inputs and outputs together, by what the adapters say",
            remedy="compose adapters of one base",
        )
    return sides.pop(), union(found)


def _sides(source: Input, module: str, count: int) -> int:
    """in + out, by the number of places and r."""
    rank = source.adapter.config.get("r", 32)
    if not isinstance(rank, int) or rank < 1 or not count or count % rank:
        raise NotMergeable(
            f"{source.name}: {shown(module)} has {count} places, no multiple of r={rank!r}",
            remedy="correct r in adapter_config.json, or re-export the adapter",
        )
    return count // rank


def union(found: Sequence[Scattered]) -> Scattered:
    """Places in ascending order, each once, with the sum of the values there."""
    every = np.concatenate([where for where, _ in found], axis=1)
    width = int(every[1].max()) + 1
    flat, back = np.unique(every[0] * width + every[1], return_inverse=True)
    total: Matrix = np.zeros(len(flat))
    np.add.at(total, back, np.concatenate([values for _, values in found]))
    return np.stack(np.divmod(flat, width)), total


def _padded(made: Scattered, count: int) -> Scattered:
    """With the first place again and again, and nothing to add there."""
    where, values = made
    missing = count - len(values)
    more = np.repeat(where[:, :1], missing, axis=1)
    return np.concatenate([where, more], axis=1), np.concatenate([values, np.zeros(missing)])
