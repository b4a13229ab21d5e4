"""Parts of an adapter that wait for the shapes of a base: see `methods.Shaped`."""

from __future__ import annotations

from functools import cache

from adapterhub.errors import BaseMismatch, NotMergeable
from adapterhub.methods import Meaning, Shaped
from adapterhub.registry.naming import Naming
from adapterhub.registry.places import missing


def settled(naming: Naming, meaning: Meaning) -> Meaning:
    """`meaning` with nothing that waits. Raises BaseMismatch, its message a sentence about
    one part, and NotMergeable."""

    @cache
    def shape_of(module: str) -> tuple[int, ...]:
        return weight_shape(naming, module)

    return tuple(part.make(shape_of) if isinstance(part, Shaped) else part for part in meaning)


def weight_shape(naming: Naming, module: str) -> tuple[int, ...]:
    """(out, in, *kernel) of its weight. Raises BaseMismatch or NotMergeable where there is none."""
    there = naming.base.tensors.get(f"{naming.stored(module)}.weight")
    if there is not None:
        return there.shape[::-1] if naming.kind(module) == "Conv1D" else there.shape
    if naming.fused_home(module) is not None:
        raise NotMergeable(
            f"{module}: the files of this base fuse it with its neighbours, and what was trained "
            "of it hangs on its own shape",
            remedy="load the base with transformers, save it, and merge into that",
        )
    raise BaseMismatch(missing(naming, module, "weight"))
