"""The few things that a merge can be asked to do, independent of method and format."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from adapterhub.tensorfile import Tensor


@dataclass(frozen=True)
class LowRank:
    """`weight += scale · B·A` for the `weight` of `module`.

    a: (rank, in), or (rank, in, *kernel) of a convolution; b: (out, rank) or (out, rank, 1 …).
    For an Embedding, `layout` is "embedding": the weight (vocabulary, dim) gets (B·A)ᵀ with
    a: (rank, vocabulary) and b: (dim, rank). `scale` is in fp64 and not yet multiplied by the
    weight that the user gives the adapter.
    """

    module: str
    a: Tensor
    b: Tensor
    scale: float
    layout: Literal["linear", "embedding"]
    roles: tuple[str, str]


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


Meaning = tuple[LowRank | BiasDelta | Replacement, ...]
