"""Collects what the adapters of a merge do to each tensor; refuses what does not go together."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from adapterhub.errors import NotMergeable
from adapterhub.merging.layers import refuse_convolution, times
from adapterhub.merging.quantised import FLOATS, refuse_dtype
from adapterhub.merging.rows import Rows
from adapterhub.merging.slabs import Slabs
from adapterhub.merging.ties import Settled, same_bytes, settle
from adapterhub.merging.work import OUTPUT_DTYPES, Change, Fate, Options, Slab, Source, Term, Work
from adapterhub.methods import (
    BiasDelta,
    Delta,
    LowRank,
    Part,
    Replacement,
    Shaped,
    Surroundings,
    TokenRows,
    Transform,
)
from adapterhub.registry.around import BaseAround
from adapterhub.registry.experts import Site
from adapterhub.registry.fit import Naming
from adapterhub.registry.places import sites
from adapterhub.registry.shaped import settled
from adapterhub.registry.tied import is_saved_copy
from adapterhub.registry.whole import spot
from adapterhub.tensorfile import Tensor

FACTOR_FLOATS = (*FLOATS, "F8_E4M3", "F8_E5M2")  # fp32 holds each of them exactly


class Draft:
    """Collects the parts of all adapters by the stored tensor that they touch.

    `around`: where the base's own values are read that a change hangs on; by default its files.
    """

    def __init__(
        self,
        naming: Naming,
        sources: Sequence[Source],
        options: Options,
        around: Surroundings | None = None,
    ) -> None:
        self.naming = naming
        self.around: Surroundings = around or BaseAround(naming)
        self.base = naming.base
        self.sources = sources
        self.options = options
        self._touched: list[tuple[int, str, str, str]] = []  # source, tensor, verb, stored name
        self.slabs: dict[str, Slabs] = {}  # by the stored tensor
        self.rows: dict[str, Rows] = {}
        self.replacements: dict[str, tuple[Replacement, list[int]]] = {}  # and who brings it
        self.settled = Settled({})
        self._same: dict[tuple[Tensor, Tensor], bool] = {}

    def add(self, number: int, part: Part) -> None:
        """Take in one part of adapter `number`. Raises NotMergeable."""
        if isinstance(part, Shaped):
            self.add(number, *settled(self.naming, (part,)))
        elif isinstance(part, LowRank):
            self._add_low_rank(number, part)
        elif isinstance(part, BiasDelta):
            self._add_bias(number, part)
        elif isinstance(part, Replacement):
            self._add_replacement(number, part)
        elif isinstance(part, TokenRows):
            self._add_rows(number, part)
        else:
            self._add_whole(number, part)

    def add_spread(self, number: int, part: Part) -> None:
        """As `add`, for what a part of the adapter says of another name of the same weight."""
        told = len(self._touched)
        self.add(number, part)
        del self._touched[told:]

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
        if partner := self.settled.shared.get(stored):
            return f"{self._written(partner)}, which {stored} shares"
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

    def _refuse_unknown_layout(self, number: int, part: LowRank) -> None:
        """GPT-2's Conv1D stores (in, out), which a square weight does not show."""
        flagged = self.sources[number].adapter.config.get("fan_in_fan_out")
        if flagged and part.layout == "linear" and self.naming.kind(part.module) is None:
            raise NotMergeable(
                f"{part.module}: the adapter's fan_in_fan_out says that some weights are stored "
                f"transposed, and nothing is known of model_type {self.base.model_type!r}",
                remedy="correct model_type in the base's config.json",
            )

    def _add_low_rank(self, number: int, part: LowRank) -> None:
        source = self.sources[number]
        self._refuse_unknown_layout(number, part)
        refuse_convolution(self.naming, part.module)
        _refuse_magnitude(source, part)
        found = sites(self.naming, part, source.adapter.config)
        for role, tensor in zip(part.roles, _tensors(part), strict=False):
            _refuse_factor(f"{part.module}.{role}", tensor)
        count = times(self.naming, source.adapter, part)
        self._low_rank_fates(number, part, found, count)
        scale = self._coefficient(number, part.scale * count)
        for site in found if count else ():
            self._add_site(number, part, site, scale)

    def _add_site(self, number: int, part: LowRank, site: Site, scale: np.float32) -> None:
        key = part.module if part.parameter is None else f"{part.module}.{part.parameter}"
        key = key if site.expert is None else f"{key}[{site.expert}]"
        term = Term(number, key, site.a, site.b, scale)
        slab = Slab(site.shape, (term,), site.first, site.transposed, part.magnitude)
        self._add_slab(site.stored, slab)

    def _add_slab(self, stored: str, slab: Slab) -> None:
        self.slabs.setdefault(stored, Slabs(stored, self.sources)).add(slab)

    def _low_rank_fates(
        self, number: int, part: LowRank, found: Sequence[Site], count: int
    ) -> None:
        stored = list(dict.fromkeys(site.stored for site in found))
        verb = (
            "merged into" if count else "not merged, since torch's attention never calls it, into"
        )
        verb = f"{verb} {len(stored)} tensors, the first of them" if len(stored) > 1 else verb
        for role in part.roles:
            self._fate(number, part.module, role, verb, stored[0])

    def _add_bias(self, number: int, part: BiasDelta) -> None:
        stored = f"{self.naming.stored(part.module)}.bias"
        key = f"{part.module}.{part.role}"
        refuse_dtype(stored, self.base.tensors[stored].dtype, self.base)
        _refuse_factor(key, part.value)
        scale = self._coefficient(number, part.scale)
        term = Term(number, key, None, part.value, scale)
        self._add_slab(stored, Slab(part.value.shape, (term,)))
        self._fate(number, part.module, part.role, "added to", stored)

    def _add_whole(self, number: int, part: Delta | Transform) -> None:
        refuse_convolution(self.naming, part.module)
        found = spot(self.naming, part)
        if found is None:
            return
        stored = found.stored
        refuse_dtype(stored, self.base.tensors[stored].dtype, self.base)
        if isinstance(part, Delta):
            _refuse_factor(f"{part.module}.{part.roles[0]}", part.value)
            scale = self._coefficient(number, part.scale)
            term = Term(number, part.module, None, part.value, scale)
            slab = Slab(found.shape, (term,), transposed=found.transposed)
        else:
            self._refuse_weight(number, f"{part.module}.{part.parameter}", "multiplies")
            apply = part.within(self.around)
            change = Change(number, part.module, apply, part.exact, part.by)
            slab = Slab(found.shape, (), transposed=found.transposed, change=change)
        self._add_slab(stored, slab)
        for role in part.roles:
            self._fate(number, part.module, role, "merged into", stored)

    def _add_replacement(self, number: int, part: Replacement) -> None:
        name = f"{self.naming.stored(part.module)}.{part.parameter}"
        there = self.base.tensors.get(name)
        if there and self.same(part.value, there):
            self._fate(number, part.module, part.role, "the same as the base's", name)
            return
        self._refuse_weight(number, f"{part.module}.{part.parameter}")
        name = name if there else self.naming.new(part)
        if there:
            _refuse_conversion(name, part.value.dtype, there.dtype)
        self._claim(number, name, part)
        self._fate(number, part.module, part.role, "replaces" if there else "adds", name)

    def _add_rows(self, number: int, part: TokenRows) -> None:
        stored = f"{self.naming.stored(part.module)}.weight"
        self._refuse_weight(number, f"rows of {stored}")
        refuse_dtype(stored, self.base.tensors[stored].dtype, self.base)
        _refuse_conversion(stored, part.value.dtype, self.base.tensors[stored].dtype)
        if f"{stored.removesuffix('.weight')}.bias" in self.base.tensors:
            raise NotMergeable(
                f"{part.module} has rows for single tokens, and {stored} a bias beside it, which "
                "PEFT leaves out of what it computes in that case",
                remedy="train the whole embedding instead, with modules_to_save",
            )
        self.rows.setdefault(stored, Rows(stored, self.sources)).add(number, part)
        verb = f"replaces {len(part.indices)} rows of"
        self._fate(number, part.module, part.role, verb, stored)

    def _refuse_weight(self, number: int, what: str, verb: str = "replaces") -> None:
        source = self.sources[number]
        if source.weight != 1.0:
            raise NotMergeable(
                f"{source.name} {verb} {what}; that cannot be taken with weight {source.weight:g}",
                remedy="give this adapter weight 1",
            )

    def same(self, one: Tensor, other: Tensor) -> bool:
        """`same_bytes`, asked once: what wraps an embedding is compared under all its names."""
        if (one, other) not in self._same:
            self._same[one, other] = same_bytes(one, other)
        return self._same[one, other]

    def _claim(self, number: int, name: str, part: Replacement) -> None:
        first, providers = self.replacements.setdefault(name, (part, []))
        if providers and not same_bytes(first.value, part.value):
            raise NotMergeable(
                f"{self.sources[providers[0]].name} and {self.sources[number].name} both replace "
                f"{name}, with different values",
                remedy="merge only one adapter that brings this tensor",
            )
        providers.append(number)

    def refuse_conflicts(self) -> None:
        """An adapter may add to what it has itself replaced, not to what another one has."""
        for stored in sorted(self.slabs.keys() & self.replacements.keys()):
            providers = self.replacements[stored][1]
            for term in self.slabs[stored].owners:
                if term.source not in providers:
                    raise NotMergeable(
                        f"{self.sources[providers[0]].name} replaces {stored}, and "
                        f"{self.sources[term.source].name} adds to it",
                        remedy="leave one of the adapters out",
                    )
        for stored, rows in sorted(self.rows.items()):
            self._refuse_rows_beside(stored, rows)

    def _refuse_rows_beside(self, stored: str, rows: Rows) -> None:
        """Rows may stand in what their adapter itself brings for the whole embedding."""
        others = [term.source for term in self.slabs[stored].owners] if stored in self.slabs else []
        part, providers = self.replacements.get(stored, (None, rows.providers))
        others += sorted({*providers} ^ {*rows.providers})
        if part and any(is_saved_copy(self.sources[n].adapter, part.module) for n in providers):
            others += providers
        if others:
            names = dict.fromkeys(self.sources[n].name for n in (*rows.providers, *others))
            raise NotMergeable(
                f"{' and '.join(names)}: rows for single tokens and another change meet in "
                f"{stored}; PEFT does not train such a thing",
                remedy="leave one of the adapters out, or merge what was trained together",
            )

    def changed(self) -> dict[str, Work]:
        """The tensors of the base that are touched, by their stored names, in the base's order."""
        touched = self.slabs.keys() | self.rows.keys() | self.replacements.keys()
        found = ((name, t) for name, t in self.base.tensors.items() if name in touched)
        return {name: self._work(name, name, tensor) for name, tensor in found}

    def works(self) -> tuple[dict[str, Work], tuple[str, ...]]:
        """Output tensors in the base's order, then tied ones that the base holds under another
        name, then new ones; and what is left out, sorted. Settles what remains tied.
        """
        kept: dict[str, Work] = {}
        left_out = []
        for stored, tensor in self.base.tensors.items():
            written = self.naming.written(stored)
            if written is not None:
                kept[stored] = self._work(stored, written, tensor)
            elif stored not in self.base.borrowed:
                left_out.append(stored)
        self.settled = settle(self.naming, kept)
        found = list(self.settled.works.values())
        for name, (part, _) in self.replacements.items():
            if name not in self.base.tensors:
                found.append(self._new_work(name, part.value))
        works = {work.name: work for work in found}
        if len(works) < len(found):
            twice = sorted({work.name for work in found if works[work.name] is not work})
            raise NotMergeable(
                f"two tensors of {self.base.path} would both be called {twice[0]}",
                remedy="the base holds one tensor under two spellings; get it anew",
            )
        return works, tuple(sorted(left_out))

    def _new_work(self, name: str, value: Tensor) -> Work:
        dtype = self._output_dtype(name, value.dtype)
        return Work(name, dtype, value.shape, value, None, replaces=True)

    def _work(self, stored: str, written: str, tensor: Tensor) -> Work:
        claim = self.replacements.get(stored)
        value: Tensor = claim[0].value if claim else tensor
        return Work(
            name=written,
            dtype=self._output_dtype(stored, tensor.dtype),
            shape=value.shape,
            value=value,
            stored=self.base.borrowed.get(stored, stored),
            slabs=self.slabs[stored].ordered() if stored in self.slabs else (),
            rows=self.rows[stored].ordered(value.shape[1]) if stored in self.rows else (),
            replaces=claim is not None,
            unties=stored in self.base.borrowed,
        )

    def _output_dtype(self, name: str, dtype: str) -> str:
        if self.options.dtype is None or dtype not in (*FLOATS, "F64"):
            return dtype
        if dtype == "F64":
            raise NotMergeable(
                f"{name} is fp64, which the merge formula does not round",
                remedy="leave --dtype out",
            )
        return OUTPUT_DTYPES[self.options.dtype]


def _tensors(part: LowRank) -> tuple[Tensor, ...]:
    return (part.a, part.b) if part.magnitude is None else (part.a, part.b, part.magnitude)


def _refuse_magnitude(source: Source, part: LowRank) -> None:
    if part.magnitude is None:
        return
    if source.weight != 1.0:
        raise NotMergeable(
            f"{source.name} has a DoRA magnitude for {part.module}, which cannot be scaled by "
            f"{source.weight:g}",
            remedy="give this adapter weight 1",
        )
    if part.layout == "experts":
        raise NotMergeable(
            f"{part.module} has a DoRA magnitude for factors of several experts",
            remedy="PEFT trains none: check where the adapter comes from",
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
