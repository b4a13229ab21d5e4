"""The few things that a merge can be asked to do, independent of method and format."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

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


@dataclass(frozen=True)
class Transform:
    """`parameter` of `module` becomes `apply(it)`; what multiplies stands alone on its parameter.

    `apply` takes and gives fp32 of one shape, (out, in · kernel) of a weight and (out,) of a bias,
    and may write to what it is given. `shape`: the sizes that the adapter's tensors ask for, None
    where they ask for none. `optional`: nothing happens where the base has no such parameter.
    `exact`: whether it gives the same bits on every machine.
    """

    module: str
    parameter: Literal["weight", "bias"]
    apply: Callable[[Values], Values]
    shape: tuple[int | None, ...]
    roles: tuple[str, ...]
    optional: bool = False
    exact: bool = True


Part = LowRank | BiasDelta | Replacement | TokenRows | Delta | Transform
Meaning = tuple[Part, ...]


def roles_of(part: Part) -> tuple[str, ...]:
    """The roles, in its module, of the tensors that a part uses."""
    if isinstance(part, LowRank | Delta | Transform):
        return part.roles
    return (part.role,)
