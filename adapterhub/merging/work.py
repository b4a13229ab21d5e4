"""What a plan consists of: frozen data, for the planner to make and the engine to follow."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from adapterhub.adapter import Adapter
from adapterhub.base import Base
from adapterhub.errors import InvalidOption
from adapterhub.methods import is_exact
from adapterhub.methods.meaning import Values
from adapterhub.tensorfile import ShardLayout, Tensor

PARTS = ("lora",)
OUTPUT_DTYPES = {"float32": "F32", "float16": "F16", "bfloat16": "BF16"}


@dataclass(frozen=True)
class Source:
    """One adapter of a merge. `digest` is its version's in the registry, if it came from there.

    `tokenizer`: the tokenizer's files that it brings, by their names. `part`: "lora" where of a
    union of several methods only the LoRA is to be merged; None for all of it.
    """

    name: str
    adapter: Adapter
    weight: float = 1.0
    digest: str | None = None
    adapter_root: str | None = None
    base_weights_root: str | None = None
    tokenizer: Mapping[str, Path] = field(default_factory=dict)
    part: str | None = None

    def __post_init__(self) -> None:
        if self.part not in (None, *PARTS):
            raise InvalidOption(f"part {self.part!r} is unknown", remedy="lora, or none at all")
        if not math.isfinite(self.weight):
            raise InvalidOption(
                f"the weight of {self.name} is {self.weight}", remedy="give a finite number"
            )


@dataclass(frozen=True)
class Options:
    """`dtype`: float32, float16, bfloat16, or None for each tensor's own.

    `base_is_initialised`: the base is the one that the adapters' initialisation (PiSSA …) changed.
    """

    dtype: str | None = None
    max_shard_bytes: int | None = None
    force_base: bool = False
    base_is_initialised: bool = False

    def __post_init__(self) -> None:
        if self.dtype is not None and self.dtype not in OUTPUT_DTYPES:
            raise InvalidOption(
                f"dtype {self.dtype!r} is unknown", remedy=f"one of {', '.join(OUTPUT_DTYPES)}"
            )


@dataclass(frozen=True)
class Term:
    """`scale` is the coefficient of DESIGN §4, rounded once to fp32; `source` numbers the adapter.

    For a bias, `a` is None and `b` is the vector; for a change of a weight that has no factors,
    `a` is None and `b` has the shape of the slab.
    """

    source: int
    key: str
    a: Tensor | None
    b: Tensor
    scale: np.float32


@dataclass(frozen=True)
class Change:
    """What a method makes of a whole matrix or bias, instead of adding to it; see `Transform`.

    `key` and `source` say whose it is, as those of a Term do; `by`, whose arithmetic.
    """

    source: int
    key: str
    apply: Callable[[Values], Values]
    exact: bool
    by: str = ""


@dataclass(frozen=True)
class Slab:
    """A part of a tensor that is a matrix of its own, and what is added to it, in order.

    `shape`: the formula's (out, in), or (n,) for a bias; a convolution's `in` counts its kernel's
    elements too. `first`: where the slab begins in the tensor, in elements in C order, which is 0
    unless it is one expert of many. `transposed`: it is stored as (in, out). `magnitude`: DoRA's, a
    value per row of the formula; then there is one term. `change`: then there is no term.
    """

    shape: tuple[int, ...]
    terms: tuple[Term, ...]
    first: int = 0
    transposed: bool = False
    magnitude: Tensor | None = None
    change: Change | None = None

    @property
    def size(self) -> int:
        return math.prod(self.shape)

    @property
    def owners(self) -> tuple[Term | Change, ...]:
        """Whose slab it is, in order."""
        return self.terms if self.change is None else (self.change,)

    @property
    def exact(self) -> bool:
        """Whether its result has the same bits on every machine."""
        if self.change is not None:
            return self.change.exact
        tensors = (tensor for term in self.terms for tensor in (term.a, term.b) if tensor)
        return all(is_exact(tensor) for tensor in tensors)


@dataclass(frozen=True)
class Row:
    """Row `index` of `value`, a matrix, takes the place of the elements from `first` on."""

    first: int
    index: int
    value: Tensor


@dataclass(frozen=True)
class Work:
    """One output tensor.

    The elements of `value` (from the base or, where `replaces`, from an adapter), changed by
    `slabs`, which do not overlap and are in the order of their elements, then by `rows`, likewise;
    rounded to `dtype`. `unties`: the base holds it under another name only, that of a tensor to
    which it was tied, which is then `stored`.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    value: Tensor
    stored: str | None  # its name in the base; None for a tensor that the base lacks
    slabs: tuple[Slab, ...] = ()
    rows: tuple[Row, ...] = ()
    replaces: bool = False
    unties: bool = False

    @property
    def terms(self) -> tuple[Term, ...]:
        return tuple(term for slab in self.slabs for term in slab.terms)

    @property
    def size(self) -> int:
        """Elements."""
        return math.prod(self.shape)

    @property
    def exact(self) -> bool:
        """Whether every machine makes the same bits of it."""
        values = (self.value, *(row.value for row in self.rows))
        return all(slab.exact for slab in self.slabs) and all(map(is_exact, values))

    @property
    def computed_by(self) -> str:
        """Whose sums, of an order of their own, are in it; "" where it is exact."""
        if self.exact:
            return ""
        whose = {slab.change.by for slab in self.slabs if slab.change and slab.change.by}
        return " and ".join(sorted(whose)) or "numpy or torch"

    @property
    def is_copy(self) -> bool:
        """Bytes of the base, unchanged."""
        changed = self.slabs or self.rows or self.replaces
        return not changed and self.dtype == self.value.dtype

    @property
    def action(self) -> str:
        if self.slabs:
            return "merge"
        if self.replaces:
            return "replace" if self.stored else "add"
        if self.rows:
            return "rows"
        if self.unties:
            return "untie"
        return "copy" if self.is_copy else "cast"


@dataclass(frozen=True)
class Fate:
    """What becomes of one tensor of one adapter."""

    source: int
    tensor: str
    fate: str


@dataclass(frozen=True)
class MergePlan:
    base: Base
    sources: tuple[Source, ...]
    options: Options
    works: Mapping[str, Work]
    shards: tuple[ShardLayout, ...]
    fates: tuple[Fate, ...]
    left_out: tuple[str, ...]
    model_class: str | None
    config: Mapping[str, Any]
    companions: Mapping[str, Path]
    notes: tuple[str, ...] = ()
    adapter_files: Mapping[Path, list[int]] = field(default_factory=dict)  # their fingerprints
    read_bytes: int = field(init=False)
    write_bytes: int = field(init=False)

    def __post_init__(self) -> None:
        reads = sum(_reads(work) for work in self.works.values())
        object.__setattr__(self, "read_bytes", reads)
        object.__setattr__(self, "write_bytes", sum(shard.nbytes for shard in self.shards))

    @property
    def exact(self) -> bool:
        """Whether every machine would make the same bits."""
        return all(work.exact for work in self.works.values())

    @property
    def changed(self) -> tuple[Work, ...]:
        return tuple(work for work in self.works.values() if not work.is_copy)


def _reads(work: Work) -> int:
    factors = sum(t.b.nbytes + (t.a.nbytes if t.a else 0) for t in work.terms)
    magnitudes = sum(slab.magnitude.nbytes for slab in work.slabs if slab.magnitude)
    rows = sum(row.value.nbytes // row.value.shape[0] for row in work.rows)
    return work.value.nbytes + factors + magnitudes + rows
