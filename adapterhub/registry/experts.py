"""Experts: which matrices of the base the factors of a 3-D parameter belong to.

transformers 5 holds the experts of a layer in parameters M: (experts, P, Q), and PEFT trains such
`target_parameters` with one pair of factors for all experts,

    A: (experts·rank, in), expert by expert      B: (out, rank·experts), rank by rank

    M[e] += scale · B_e·A_e        where (out, in) = (P, Q)
    M[e] += scale · (B_e·A_e)ᵀ     where (out, in) = (Q, P)

The second holds where the module calls itself transposed, and held for all before peft 0.19. Of a
single expert PEFT makes the first, whatever the module says. (peft 0.21.2, `ParamWrapper`.)

Files hold M itself, or tensors for each expert, as the checkpoints of Mixtral do: the rows of `w1`
and `w3`, one below the other, are M[e], or its transpose where the module is transposed.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from adapterhub.errors import BaseMismatch, NotMergeable
from adapterhub.methods import LowRank
from adapterhub.registry.windows import Shared, Window, row_range
from adapterhub.tensorfile import Tensor

_VERSION = re.compile(r"(\d{1,4})\.(\d{1,4})\b")
_ALL = slice(None)


@dataclass(frozen=True)
class Site:
    """A matrix inside the tensor `stored`, from its element `first` on, and what is added to it.

    a: (rank, in …), b: (out, rank …); `transposed`: the matrix is stored as (in, out). `expert` is
    its number where the part of the adapter has several.
    """

    stored: str
    a: Tensor
    b: Tensor
    first: int = 0
    transposed: bool = False
    expert: int | None = None

    @property
    def shape(self) -> tuple[int, int]:
        """The formula's (out, in)."""
        return self.b.shape[0], math.prod(self.a.shape[1:])


def swapped_in_and_out(config: Mapping[str, Any]) -> bool | None:
    """Whether the peft that wrote this config took rows for columns; None if nobody knows."""
    text = config.get("peft_version")
    found = _VERSION.match(text) if isinstance(text, str) else None
    if not isinstance(text, str) or found is None:
        return None
    version = int(found[1]), int(found[2])
    if version == (0, 18) and "dev" in text:
        return None
    return version < (0, 19)


def of_tensor(
    stored: str, shape: tuple[int, ...], part: LowRank, *, transposed: bool | None
) -> tuple[Site, ...]:
    """The sites in a 3-D tensor; `transposed` decides where the matrices are square.

    Raises BaseMismatch, and NotMergeable where it would have to decide and is None.
    """
    count, rows, columns = shape
    rank = _rank(part, count, f"a {list(shape)} tensor of {count} experts")
    turned = _turned(part, (rows, columns), False if count == 1 else transposed)
    if turned and count == 1:
        raise BaseMismatch(_other_shape(part, (rows, columns)))
    a, b = Shared(part.a), Shared(part.b)
    return tuple(
        Site(
            stored,
            row_range(a, expert * rank, (expert + 1) * rank),
            Window(b, _ALL, slice(expert, None, count)),
            expert * rows * columns,
            turned,
            expert,
        )
        for expert in range(count)
    )


def of_parts(
    parts: Sequence[Sequence[tuple[str, tuple[int, ...]]]],
    part: LowRank,
    *,
    transposed: bool | None,
) -> tuple[Site, ...]:
    """The sites in tensors that each hold a part of one expert; raises as `of_tensor`.

    `parts[p][e]` is name and shape of part p of expert e. `transposed` is whether square products
    have to be, for the parts as they stand one below the other.
    """
    count = len(parts[0])
    heights = [_common_shape(experts)[0] for experts in parts]
    width = _common_shape([experts[0] for experts in parts], rows=False)[1]
    rank = _rank(part, count, f"{count} experts")
    turned = _turned(part, (sum(heights), width), transposed)
    a, b = Shared(part.a), Shared(part.b)
    found = []
    for expert in range(count):
        mine, strided = slice(expert * rank, (expert + 1) * rank), slice(expert, None, count)
        for experts, rows in zip(parts, _ranges(heights), strict=True):
            one = Window(a, mine, rows) if turned else row_range(a, mine.start, mine.stop)
            other = Window(b, _ALL if turned else rows, strided)
            found.append(Site(experts[expert][0], one, other, 0, turned, expert))
    return tuple(found)


def in_fused(
    stored: str, shape: tuple[int, ...], part: LowRank, *, expert: int, number: int, of: int
) -> Site:
    """The site of a pair for one expert's own tensor, the `number`th of `of` parts, in a 3-D one.

    Only of one that is not transposed: there the rows of a part lie together.
    """
    count, rows, columns = shape
    height = rows // of
    out, into = part.b.shape[0], math.prod(part.a.shape[1:])
    if expert >= count or (out, into) != (height, columns) or rows % of:
        raise BaseMismatch(
            f"{part.module}: the adapter has factors of shape {[out, into]}, the base {count} "
            f"experts of {[rows, columns]} in {stored}"
        )
    return Site(stored, part.a, part.b, (expert * rows + number * height) * columns)


def _ranges(sizes: Sequence[int]) -> Iterator[slice]:
    ends = [0]
    for size in sizes:
        ends.append(ends[-1] + size)
    return (slice(start, stop) for start, stop in pairwise(ends))


def _common_shape(
    tensors: Sequence[tuple[str, tuple[int, ...]]], *, rows: bool = True
) -> tuple[int, int]:
    """The shape that all these matrices have; without `rows`, as far as columns go."""
    first, shape = tensors[0]
    for name, other in tensors:
        if len(other) != 2 or (other if rows else other[1:]) != (shape if rows else shape[1:]):
            raise BaseMismatch(
                f"{name}: the base has shape {list(other)} there, and {list(shape)} in {first}"
            )
    return shape[0], shape[1]


def _rank(part: LowRank, count: int, experts: str) -> int:
    """Rank of each expert's factors."""
    a, b = part.a.shape, part.b.shape
    if len(a) != 2 or len(b) != 2 or a[0] != b[1] or not a[0] or not count or a[0] % count:
        raise BaseMismatch(
            f"{part.module}.{part.parameter}: the adapter has factors of {list(a)} and {list(b)}, "
            f"the base {experts}; expected (rank · experts, in) and (out, rank · experts)"
        )
    return a[0] // count


def _turned(part: LowRank, stored: tuple[int, int], if_square: bool | None) -> bool:
    """Whether the product is added transposed to a matrix of this shape."""
    product = part.b.shape[0], part.a.shape[1]
    if product not in (stored, stored[::-1]):
        raise BaseMismatch(_other_shape(part, stored))
    if stored[0] != stored[1]:
        return product != stored
    if if_square is None:
        raise NotMergeable(
            f"{part.module}.{part.parameter}: the experts' matrices are square, and nothing tells "
            "whether the adapter's factors are for them or for their transposes",
            remedy="state peft_version in adapter_config.json, the one that it was trained with, "
            "and model_type in the base's config.json",
        )
    return if_square


def _other_shape(part: LowRank, stored: tuple[int, int]) -> str:
    product = [part.b.shape[0], part.a.shape[1]]
    return (
        f"{part.module}.{part.parameter}: the adapter has factors of shape {product} for each "
        f"expert, the base matrices of {list(stored)}"
    )
