"""Random factors that all modules share: saved, or made anew from a seed and the largest sides."""

from __future__ import annotations

from collections.abc import Callable

from adapterhub.adapter import Adapter
from adapterhub.errors import BaseMismatch, NotMergeable
from adapterhub.methods.computed import Computed, fp32
from adapterhub.methods.meaning import ShapeOf, Values
from adapterhub.methods.mergeable import Settings, adapted
from adapterhub.tensorfile import Tensor, shown

Pair = tuple[Values, Values]


def saved(adapter: Adapter, prefix: str) -> tuple[Tensor, Tensor] | None:
    """A and B as they stand in the files; None where they are to be made anew.

    Raises NotMergeable where the config says the one and the files the other.
    """
    names = (f"{prefix}_A", f"{prefix}_B")
    found = [t for name in names if (t := adapter.modules.get("", {}).get(name))]
    if bool(Settings(adapter).get("save_projection")) != (len(found) == len(names)):
        raise NotMergeable(
            f"save_projection is {adapter.config.get('save_projection')!s}, and the weights hold "
            f"{len(found)} of {' and '.join(names)}: which ones were trained with is not certain",
            remedy="load it with peft and save it again",
        )
    return (found[0], found[1]) if found else None


def largest(adapter: Adapter, shape_of: ShapeOf) -> tuple[int, int]:
    """(out, in), each the largest among the weights that are adapted."""
    shapes = [shape_of(module) for module, _ in adapted(adapter)]
    return max(shape[0] for shape in shapes), max(shape[1] for shape in shapes)


def seed(adapter: Adapter) -> int:
    return int(Settings(adapter).get("projection_prng_key"))


def factor(
    shape: tuple[int, int],
    shared: tuple[Tensor, Tensor] | None,
    remake: Callable[[], Pair],
    scaled: Callable[[Values, Values], Values],
    vectors: tuple[Tensor, ...],
) -> Computed:
    """`scaled(A, B)`, read or made when it is asked for."""

    def compute() -> Values:
        return scaled(*((fp32(shared[0]), fp32(shared[1])) if shared else remake()))

    return Computed(shape, compute, (*(shared or ()), *vectors), exact=shared is not None)


def check_sides(module: str, has: tuple[int, int], needs: tuple[int, int]) -> None:
    """Raises BaseMismatch where the saved factors are too small for a weight."""
    if has[0] < needs[0] or has[1] < needs[1]:
        raise BaseMismatch(
            f"{shown(module)}: the base has a weight of {list(needs)}, the adapter's random "
            f"factors are for at most {list(has)}"
        )


def sides(module: str, shape_of: ShapeOf) -> tuple[int, int]:
    """(out, in) of its weight. Raises BaseMismatch for what is no matrix."""
    shape = shape_of(module)
    if len(shape) != 2:
        raise BaseMismatch(
            f"{shown(module)}: the base has a weight of {list(shape)}, expected a matrix"
        )
    return shape[0], shape[1]
