"""The plan of a merge: for every output tensor, what to do. Pure; reads no tensor values."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from adapterhub.adapter import Adapter
from adapterhub.base import Base
from adapterhub.errors import BaseMismatch, InvalidOption, NotMergeable
from adapterhub.merge import companions
from adapterhub.methods import BiasDelta, LowRank, Replacement, method
from adapterhub.registry.fit import Naming, mismatch, refuse, target_class
from adapterhub.tensorfile import ShardLayout, Spec, Tensor, lay_out, plan_shards

FLOATS = ("F32", "F16", "BF16")  # what the formula of DESIGN §4 covers
FACTOR_FLOATS = (*FLOATS, "F8_E4M3", "F8_E5M2")  # fp32 holds each of them exactly
OUTPUT_DTYPES = {"float32": "F32", "float16": "F16", "bfloat16": "BF16"}


@dataclass(frozen=True)
class Source:
    """One adapter of a merge. `digest` is its version's in the registry, if it came from there."""

    name: str
    adapter: Adapter
    weight: float = 1.0
    digest: str | None = None
    adapter_root: str | None = None
    base_weights_root: str | None = None

    def __post_init__(self) -> None:
        if not math.isfinite(self.weight):
            raise InvalidOption(
                f"the weight of {self.name} is {self.weight}", remedy="give a finite number"
            )


@dataclass(frozen=True)
class Options:
    """`dtype`: float32, float16, bfloat16, or None for each tensor's own."""

    dtype: str | None = None
    max_shard_bytes: int | None = None
    force_base: bool = False

    def __post_init__(self) -> None:
        if self.dtype is not None and self.dtype not in OUTPUT_DTYPES:
            raise InvalidOption(
                f"dtype {self.dtype!r} is unknown", remedy=f"one of {', '.join(OUTPUT_DTYPES)}"
            )


@dataclass(frozen=True)
class Term:
    """`scale` is the coefficient of DESIGN §4, rounded once to fp32; `source` numbers the adapter.

    For a bias, `a` is None and `b` is the vector.
    """

    source: int
    key: str
    a: Tensor | None
    b: Tensor
    scale: np.float32


@dataclass(frozen=True)
class Work:
    """One output tensor.

    The bytes of `value` (from the base or, where `replaces`, from an adapter), plus `terms` in
    order, rounded to `dtype`. `transposed`: the formula's (out, in) is stored as (in, out).
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    value: Tensor
    stored: str | None  # its name in the base; None for a tensor that the base lacks
    terms: tuple[Term, ...] = ()
    transposed: bool = False
    replaces: bool = False

    @property
    def is_copy(self) -> bool:
        """The base's own bytes, unchanged."""
        return not self.terms and not self.replaces and self.dtype == self.value.dtype

    @property
    def action(self) -> str:
        if self.terms:
            return "merge"
        if self.replaces:
            return "replace" if self.stored else "add"
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
    read_bytes: int = field(init=False)
    write_bytes: int = field(init=False)

    def __post_init__(self) -> None:
        reads = sum(_reads(work) for work in self.works.values())
        object.__setattr__(self, "read_bytes", reads)
        object.__setattr__(self, "write_bytes", sum(shard.nbytes for shard in self.shards))

    @property
    def changed(self) -> tuple[Work, ...]:
        return tuple(work for work in self.works.values() if not work.is_copy)


def _reads(work: Work) -> int:
    factors = sum(t.b.nbytes + (t.a.nbytes if t.a else 0) for t in work.terms)
    return work.value.nbytes + factors


def plan(base: Base, sources: Sequence[Source], options: Options | None = None) -> MergePlan:
    """Decide everything. Raises NotMergeable or BaseMismatch, with every mismatch listed."""
    options = options or Options()
    if not sources:
        raise InvalidOption("no adapter was given", remedy="name at least one adapter")
    meanings = [method(s.adapter.method).implementation.meaning(s.adapter) for s in sources]
    pairs = [(s.adapter, meaning) for s, meaning in zip(sources, meanings, strict=True)]
    naming = Naming(base, target_class(base, pairs))
    draft = _Draft(naming, sources, options)
    for number, meaning in enumerate(meanings):
        for part in meaning:
            draft.add(number, part)
    refuse(base, ", ".join(source.name for source in sources), draft.mismatches)
    draft.refuse_conflicts()
    works, left_out = draft.works()
    _check_complete(naming, works)
    labels = next((s.adapter.labels for s in sources if s.adapter.labels), ())
    return MergePlan(
        base=base,
        sources=tuple(sources),
        options=options,
        works=works,
        shards=_shards(base, works, options),
        fates=draft.fates(),
        left_out=left_out,
        model_class=_class_name(naming),
        config=companions.config(base, naming.target, works, labels, options.dtype),
        companions=companions.files(base),
        notes=tuple(draft.notes),
    )


def _class_name(naming: Naming) -> str | None:
    found = naming.target or naming.base.model_class
    return found.name if found else None


def _check_complete(naming: Naming, works: Mapping[str, Work]) -> None:
    """A changed class must have all of its head, or loading would invent it."""
    if naming.target is None:
        return
    heads = [
        f"{module}.{parameter}"
        for module in sorted(naming.target.heads)
        if "*" not in module
        for parameter in naming.target.modules[module].parameters
    ]
    tied = naming.target.tied
    missing = [name for name in heads if name not in works and name not in tied]
    if missing:
        raise BaseMismatch(
            f"a {naming.target.name} needs tensors that neither base nor adapter has",
            details=missing,
            remedy="train with modules_to_save naming the whole head, or give a base that has it",
        )


def _shards(base: Base, works: Mapping[str, Work], options: Options) -> tuple[ShardLayout, ...]:
    specs = [Spec(work.name, work.dtype, work.shape) for work in works.values()]
    if options.max_shard_bytes is not None:
        return plan_shards(specs, max_shard_bytes=options.max_shard_bytes)
    return _layout_of(base, works)


def _layout_of(base: Base, works: Mapping[str, Work]) -> tuple[ShardLayout, ...]:
    """The base's own files; tensors that it lacks stand at the end of the last one."""
    files = [path.name for path in base.checkpoint.files]
    groups: dict[str, list[Spec]] = {name: [] for name in files}
    for work in works.values():
        home = base.tensors[work.stored].path.name if work.stored else files[-1]
        groups[home].append(Spec(work.name, work.dtype, work.shape))
    return tuple(lay_out(name, specs) for name, specs in groups.items() if specs)


class _Draft:
    """Collects the parts of all adapters by the stored tensor that they touch."""

    def __init__(self, naming: Naming, sources: Sequence[Source], options: Options) -> None:
        self.naming = naming
        self.base = naming.base
        self.sources = sources
        self.options = options
        self._touched: list[tuple[int, str, str, str]] = []  # source, tensor, verb, stored name
        self.notes: list[str] = []
        self.mismatches: list[str] = []
        self.terms: dict[str, list[Term]] = {}
        self.transposed: set[str] = set()
        self.replacements: dict[str, tuple[int, Replacement]] = {}

    def add(self, number: int, part: LowRank | BiasDelta | Replacement) -> None:
        if found := mismatch(self.naming, part):
            self.mismatches.append(found)
        elif isinstance(part, LowRank):
            self._add_low_rank(number, part)
        elif isinstance(part, BiasDelta):
            self._add_bias(number, part)
        else:
            self._add_replacement(number, part)

    def _fate(self, number: int, module: str, role: str, verb: str, stored: str) -> None:
        self._touched.append((number, f"{module}.{role}", verb, stored))

    def fates(self) -> tuple[Fate, ...]:
        """Of every tensor of every adapter, with the names of the result."""
        return tuple(
            Fate(number, tensor, f"{verb} {written}" if written else f"unused: no {stored} there")
            for number, tensor, verb, stored in self._touched
            for written in (self._written(stored),)
        )

    def _written(self, stored: str) -> str | None:
        return self.naming.written(stored) if stored in self.base.tensors else stored

    def _coefficient(self, number: int, scale: float) -> np.float32:
        with np.errstate(over="ignore"):
            coefficient = np.float32(scale * self.sources[number].weight)
        if not np.isfinite(coefficient):
            raise NotMergeable(
                f"the scaling {scale} times the weight of {self.sources[number].name} "
                "is beyond fp32",
                remedy="correct lora_alpha or the weight",
            )
        return coefficient

    def _refuse_tied(self, stored: str) -> None:
        for one, other in self.base.ties.items():
            if stored in (one, other):
                raise NotMergeable(
                    f"{stored} is one of a tied pair ({one} and {other} share one weight)",
                    remedy="a later version unties them; until then leave it out of the adapter",
                )

    def _add_low_rank(self, number: int, part: LowRank) -> None:
        stored = f"{self.naming.stored(part.module)}.weight"
        self._refuse_tied(stored)
        _refuse_dtype(stored, self.base.tensors[stored].dtype, self.base.path)
        for role, tensor in zip(part.roles, (part.a, part.b), strict=True):
            _refuse_factor(f"{part.module}.{role}", tensor)
            self._fate(number, part.module, role, "merged into", stored)
        if self.naming.transposed(part):
            self.transposed.add(stored)
        scale = self._coefficient(number, part.scale)
        self.terms.setdefault(stored, []).append(Term(number, part.module, part.a, part.b, scale))

    def _add_bias(self, number: int, part: BiasDelta) -> None:
        stored = f"{self.naming.stored(part.module)}.bias"
        key = f"{part.module}.{part.role}"
        _refuse_dtype(stored, self.base.tensors[stored].dtype, self.base.path)
        _refuse_factor(key, part.value)
        scale = self._coefficient(number, part.scale)
        self.terms.setdefault(stored, []).append(Term(number, key, None, part.value, scale))
        self._fate(number, part.module, part.role, "added to", stored)

    def _add_replacement(self, number: int, part: Replacement) -> None:
        source = self.sources[number]
        if source.weight != 1.0:
            raise NotMergeable(
                f"{source.name} replaces {part.module}.{part.parameter}; a replacement cannot "
                f"be taken with weight {source.weight:g}",
                remedy="give this adapter weight 1",
            )
        name = f"{self.naming.stored(part.module)}.{part.parameter}"
        there = self.base.tensors.get(name)
        if there is None:
            name = f"{part.module}.{part.parameter}"
        else:
            self._refuse_tied(name)
            _refuse_conversion(name, part.value.dtype, there.dtype)
        self._claim(number, name, part)
        self._fate(number, part.module, part.role, "replaces" if there else "adds", name)

    def _claim(self, number: int, name: str, part: Replacement) -> None:
        earlier = self.replacements.get(name)
        if earlier is not None and not _same_bytes(earlier[1].value, part.value):
            raise NotMergeable(
                f"{self.sources[earlier[0]].name} and {self.sources[number].name} both replace "
                f"{name}, with different values",
                remedy="merge only one adapter that brings this tensor",
            )
        self.replacements.setdefault(name, (number, part))

    def refuse_conflicts(self) -> None:
        both = sorted(self.terms.keys() & self.replacements.keys())
        if both:
            raise NotMergeable(
                "these tensors are both replaced and added to",
                details=both,
                remedy="leave one of the adapters out",
            )

    def works(self) -> tuple[dict[str, Work], tuple[str, ...]]:
        """Output tensors in the base's order, then the new ones; and what is left out."""
        works: dict[str, Work] = {}
        left_out = []
        for stored, tensor in self.base.tensors.items():
            written = self.naming.written(stored)
            if written is None:
                left_out.append(stored)
                continue
            works[written] = self._work(stored, written, tensor)
        for name, (_, part) in self.replacements.items():
            if name not in self.base.tensors:
                value = part.value
                dtype = self._output_dtype(name, value.dtype)
                works[name] = Work(name, dtype, value.shape, value, None, replaces=True)
        return works, tuple(left_out)

    def _work(self, stored: str, written: str, tensor: Tensor) -> Work:
        claim = self.replacements.get(stored)
        value: Tensor = claim[1].value if claim else tensor
        return Work(
            name=written,
            dtype=self._output_dtype(stored, tensor.dtype),
            shape=value.shape,
            value=value,
            stored=stored,
            terms=tuple(self.terms.get(stored, ())),
            transposed=stored in self.transposed,
            replaces=claim is not None,
        )

    def _output_dtype(self, name: str, dtype: str) -> str:
        if self.options.dtype is None or dtype not in (*FLOATS, "F64"):
            return dtype
        wanted = OUTPUT_DTYPES[self.options.dtype]
        if dtype == "F64" and wanted != "F32":
            raise NotMergeable(
                f"{name} is fp64; going to {self.options.dtype} would round it twice",
                remedy="--dtype float32, or leave --dtype out",
            )
        return wanted


def _refuse_dtype(name: str, dtype: str, path: Path) -> None:
    if dtype not in FLOATS:
        raise NotMergeable(
            f"{name} of {path} is stored as {dtype}; only {', '.join(FLOATS)} can be merged",
            remedy="give the full-precision base",
        )


def _refuse_factor(name: str, tensor: Tensor) -> None:
    if tensor.dtype not in FACTOR_FLOATS:
        raise NotMergeable(
            f"{name} is stored as {tensor.dtype}, which fp32 does not hold exactly",
            remedy="export the adapter in float32, float16 or bfloat16",
        )


def _refuse_conversion(name: str, dtype: str, to: str) -> None:
    """A replacement takes the dtype of what it replaces, in one rounding or not at all."""
    if dtype != to and not {dtype, to} <= set(FLOATS):
        raise NotMergeable(
            f"{name} is {to} in the base and {dtype} in the adapter",
            remedy=f"export the adapter with this tensor as {to}",
        )


def _same_bytes(one: Tensor, other: Tensor) -> bool:
    if (one.dtype, one.shape) != (other.dtype, other.shape):
        return False
    return all(a == b for a, b in zip(one.pieces(), other.pieces(), strict=True))
