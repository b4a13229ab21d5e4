"""The few things that a merge can be asked to do, independent of method and format."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, Protocol

import numpy as np

from adapterhub.tensorfile import Tensor

Layout = Literal["linear", "embedding", "experts"]
Values = np.ndarray[Any, np.dtype[np.float32]]


@dataclass(frozen=True)
class LowRank:
    """`weight += scale · B·A` for a parameter of `module`.

    `layout` "linear": a is (rank, in), or (rank, in, *kernel) of a convolution; b is (out, rank) or
    (out, rank, 1 …). "embedding": the weight (vocabulary, dim) gets (B·A)ᵀ, with a: (rank,
    vocabulary) and b: (dim, rank). "experts": a 3-D parameter gets a product for each expert, which
    a holds expert by expert, (experts·rank, in), and b rank by rank, (out, rank·experts).

    `parameter` is None for the weight of the module, which a MultiheadAttention calls
    `in_proj_weight`. `scale` is in fp64 and not yet multiplied by the weight that the user gives
    the adapter. `magnitude` is that of DoRA, one value per row of the formula: the result is
    `magnitude / ‖row‖ · row` of the sum. `roles`: those of a, b and, if there is one, magnitude.
    """

    module: str
    a: Tensor
    b: Tensor
    scale: float
    layout: Layout
    roles: tuple[str, ...]
    parameter: str | None = None
    magnitude: Tensor | None = None


@dataclass(frozen=True)
class BiasDelta:
    """`bias += scale · value` for the `bias` of `module`; value: (out,)."""

    module: str
    value: Tensor
    scale: float
    role: str


@dataclass(frozen=True)
class Replacement:
    """`value` takes the place of the tensor `<module>.<parameter>`, or adds it."""

    module: str
    parameter: str
    value: Tensor
    role: str


@dataclass(frozen=True)
class TokenRows:
    """Row `indices[i]` of the weight of `module` becomes row i of `value`: (tokens, dim)."""

    module: str
    indices: tuple[int, ...]
    value: Tensor
    role: str


@dataclass(frozen=True)
class Delta:
    """`parameter += scale · value` for a parameter of `module`, where the change has no low rank.

    value: (out, in), or (out, in, *kernel) of a convolution, (n,) of a norm or a bias; often one
    that is computed when it is read. `scale` as that of LowRank.
    """

    module: str
    value: Tensor
    scale: float
    roles: tuple[str, ...]
    parameter: Literal["weight", "bias"] = "weight"


class Surroundings(Protocol):
    """The base around a parameter that changes, as it was before any change."""

    def read(self, module: str, parameter: str) -> Values | None:
        """fp32, oriented as for `Transform.apply`; None where the base has no such parameter."""

    def linears(self) -> Mapping[str, tuple[int, int]] | None:
        """Every linear layer and its (out, in); None where that is not known."""

    def ordered(self, modules: Sequence[str]) -> list[str] | None:
        """As the model has them one after the other; None where that is not known."""


@dataclass(frozen=True)
class Transform:
    """`parameter` of `module` becomes `apply(it)`; what multiplies stands alone on its parameter.

    `apply` takes and gives fp32 of one shape, (out, in · kernel) of a weight and (out,) of a bias,
    and may write to what it is given. `shape`: the sizes that the adapter's tensors ask for, None
    where they ask for none. `optional`: nothing happens where the base has no such parameter.
    `exact`: whether it gives the same bits on every machine. `pointwise`: only kernels of one
    element, if the weight is of a convolution. `looks_around`: `apply` takes Surroundings before
    the values. `by`: whose arithmetic it is, where it is not our own.
    """

    module: str
    parameter: Literal["weight", "bias"]
    apply: Callable[..., Values]
    shape: tuple[int | None, ...]
    roles: tuple[str, ...]
    optional: bool = False
    exact: bool = True
    pointwise: bool = False
    looks_around: bool = False
    by: str = ""

    def within(self, surroundings: Surroundings) -> Callable[[Values], Values]:
        """`apply` for one base."""
        return partial(self.apply, surroundings) if self.looks_around else self.apply


ShapeOf = Callable[[str], tuple[int, ...]]


@dataclass(frozen=True)
class Shaped:
    """What becomes a LowRank or a Delta of `module` once the base tells the shapes of its weights.

    `make` takes a function from a module to the shape of its weight, (out, in, *kernel) as the
    formula has it, which raises for a module that the base lacks. `make` raises BaseMismatch, its
    message a sentence about the module. `roles`: those of what it makes.
    """

    module: str
    make: Callable[[ShapeOf], LowRank | Delta]
    roles: tuple[str, ...]


Part = LowRank | BiasDelta | Replacement | TokenRows | Delta | Transform | Shaped
Meaning = tuple[Part, ...]


def roles_of(part: Part) -> tuple[str, ...]:
    """The roles, in its module, of the tensors that a part uses."""
    if isinstance(part, LowRank | Delta | Transform | Shaped):
        return part.roles
    return (part.role,)
