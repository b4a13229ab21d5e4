"""Where in a base a change of a whole weight or bias belongs: see `Delta` and `Transform`."""

from __future__ import annotations

import math
from dataclasses import dataclass

from adapterhub.errors import AdapterHubError, BaseMismatch, NotMergeable
from adapterhub.methods import Delta, Transform
from adapterhub.registry.naming import Naming
from adapterhub.registry.places import missing


@dataclass(frozen=True)
class Spot:
    """The tensor `stored`; `shape` is the formula's: (out, in · kernel), or (n,) of a bias.

    `transposed`: it is stored as (in, out).
    """

    stored: str
    shape: tuple[int, ...]
    transposed: bool = False


def stored_name(naming: Naming, part: Delta | Transform) -> str:
    return f"{naming.stored(part.module)}.{part.parameter}"


def spot(naming: Naming, part: Delta | Transform) -> Spot | None:
    """None where the base has no such parameter and the part does not need it.

    Raises BaseMismatch, its message a sentence about the part, and NotMergeable.
    """
    stored = stored_name(naming, part)
    there = naming.base.tensors.get(stored)
    if there is None and isinstance(part, Transform) and part.optional:
        return None
    if there is None:
        raise _absent(naming, part)
    transposed = part.parameter == "weight" and naming.kind(part.module) == "Conv1D"
    shape = there.shape[::-1] if transposed else there.shape
    flat = (shape[0], math.prod(shape[1:])) if len(shape) > 1 else shape
    asked = part.shape if isinstance(part, Transform) else part.value.shape
    if not (fits(asked, shape) or fits(asked, flat)):
        got = f"[{', '.join(str(size or 'any') for size in asked)}]"
        expected = list(shape)
        raise BaseMismatch(
            f"{part.module}.{part.parameter}: the adapter is for {got}, the base has {expected}"
        )
    if isinstance(part, Transform) and part.pointwise and math.prod(shape[2:]) > 1:
        raise NotMergeable(
            f"{part.module}: a convolution with a kernel of {list(shape[2:])}; what this method "
            "computes of its patches is no convolution",
            remedy="load the adapter with peft, or retrain without this module",
        )
    return Spot(stored, flat, transposed)


def fits(asked: tuple[int | None, ...], shape: tuple[int, ...]) -> bool:
    same = len(asked) == len(shape)
    return same and all(a in (None, size) for a, size in zip(asked, shape, strict=True))


def _absent(naming: Naming, part: Delta | Transform) -> AdapterHubError:
    if naming.fused_home(part.module) is not None:
        return NotMergeable(
            f"{part.module}: the files of this base fuse it with its neighbours, and a change of "
            "the whole weight is not taken apart",
            remedy="load the base with transformers, save it, and merge into that",
        )
    return BaseMismatch(missing(naming, part.module, part.parameter))
