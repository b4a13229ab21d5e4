"""What a composition will do, checked before any of it is done."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from adapterhub.composing.inputs import Input, check_bases
from adapterhub.composing.methods import Method, method
from adapterhub.composing.sites import Site, Term, sites
from adapterhub.composing.wholes import REFUSE, Wholes, wholes
from adapterhub.errors import InvalidOption, NotMergeable, NotSupported
from adapterhub.methods import BiasDelta, Meaning
from adapterhub.methods import method as adapter_method
from adapterhub.tensorfile import shown


@dataclass(frozen=True)
class Options:
    """`rank`, `energy`: what the result is truncated to; None leaves it as the method makes it.

    `whole`: what becomes of tensors that are saved whole and differ, "refuse", "average", or the
    number of the input that is taken. `seed`: of methods that drop elements by chance.
    """

    method: str = "sum"
    parameters: Mapping[str, Any] = field(default_factory=dict)
    rank: int | None = None
    energy: float | None = None
    whole: str | int = REFUSE
    seed: int = 0
    force_base: bool = False

    def __post_init__(self) -> None:
        if self.rank is not None and self.rank < 1:
            raise InvalidOption(f"rank {self.rank}", remedy="a rank is 1 or more")
        if self.energy is not None and not 0 < self.energy <= 1:
            raise InvalidOption(f"energy {self.energy}", remedy="a share is above 0, at most 1")
        if not 0 <= self.seed < 1 << 64:
            raise InvalidOption(f"seed {self.seed}", remedy="a seed is from 0 to 2⁶⁴ - 1")


@dataclass(frozen=True)
class Plan:
    """`inputs` as the user gave them; `weights` as they count, which average divides."""

    inputs: tuple[Input, ...]
    weights: tuple[float, ...]
    method: Method
    parameters: Mapping[str, Any]
    options: Options
    sites: tuple[Site, ...]
    biases: Mapping[str, tuple[tuple[int, BiasDelta], ...]]
    wholes: Wholes
    notes: tuple[str, ...]

    @property
    def cuts(self) -> bool:
        """Whether results are truncated: what is not low-rank always is."""
        asked = self.options.rank is not None or self.options.energy is not None
        return asked or self.method.kind == "dense"

    @property
    def exact(self) -> bool:
        """Whether every machine makes the same bits."""
        return self.method.exact and not self.cuts


def plan(inputs: Sequence[Input], options: Options) -> Plan:
    """Raises InvalidOption, BaseMismatch, NotMergeable, NotSupported; reads no values but where
    tensors are saved whole."""
    row = method(options.method)
    row.check_count(len(inputs))
    parameters = row.settings(options.parameters)
    _refuse_others(inputs)
    notes = check_bases(inputs, force=options.force_base)
    weights = _weights(row, inputs)
    row.check_together(parameters, weights)
    meanings = [_meaning(each) for each in inputs]
    found = sites(inputs, meanings)
    firsts = _firsts(inputs)
    settled = [_settled(row, site, weights, firsts) for site in found]
    _refuse_dora(inputs, settled, row, options)
    return Plan(
        inputs=tuple(inputs),
        weights=weights,
        method=row,
        parameters=parameters,
        options=options,
        sites=tuple(settled),
        biases=_biases(meanings),
        wholes=wholes(inputs, weights, meanings, options.whole),
        notes=tuple(notes),
    )


def _refuse_others(inputs: Sequence[Input]) -> None:
    """Raises NotSupported where the adapters are not all LoRA."""
    others = sorted({each.adapter.method for each in inputs} - {"lora"})
    if others:
        raise NotSupported(
            f"{' and '.join(others)} cannot be composed with LoRA",
            details=[f"{each.name}: {each.adapter.method}" for each in inputs],
            remedy="compose adapters of one method",
        )


def _weights(row: Method, inputs: Sequence[Input]) -> tuple[float, ...]:
    """As they count: those of an average are divided by their sum."""
    weights = tuple(each.weight for each in inputs)
    if not row.averages:
        return weights
    total = sum(weights)
    if total == 0:
        raise InvalidOption(
            "the weights of an average add up to 0", remedy="give other weights, or --method sum"
        )
    return tuple(weight / total for weight in weights)


def _meaning(source: Input) -> Meaning:
    return adapter_method(source.adapter.method).implementation.meaning(source.adapter)


def _firsts(inputs: Sequence[Input]) -> list[int]:
    """For each input the number of the first that is the same adapter."""
    return [
        next(number for number, first in enumerate(inputs) if first.same(each)) for each in inputs
    ]


def _settled(row: Method, site: Site, weights: Sequence[float], firsts: Sequence[int]) -> Site:
    """Terms with the weights that count; of a sum, those of one adapter given twice are one."""
    terms = [replace(term, weight=weights[term.number]) for term in site.terms]
    if row.function != "total":
        return replace(site, terms=tuple(terms))
    merged: dict[int, Term] = {}
    for term in terms:
        first = merged.get(firsts[term.number])
        weight = term.weight + (first.weight if first else 0.0)
        merged[firsts[term.number]] = replace(first or term, weight=weight)
    return replace(site, terms=tuple(term for term in merged.values() if term.weight != 0))


def _refuse_dora(
    inputs: Sequence[Input], found: Sequence[Site], row: Method, options: Options
) -> None:
    """DoRA hangs on the base's own weights: it stays as it is, whole, or not at all."""
    of_dora = [site for site in found if any(term.part.magnitude for term in site.terms)]
    if not of_dora:
        return
    alone = all(
        len(site.terms) == 1 and site.terms[0].weight == 1 and site.terms[0].part.magnitude
        for site in found
    )
    cut = options.rank is not None or options.energy is not None
    if alone and row.function == "total" and not cut:
        return
    names = sorted({inputs[t.number].name for s in of_dora for t in s.terms if t.part.magnitude})
    raise NotMergeable(
        f"{' and '.join(names)} is a DoRA: its magnitudes hang on the base's weights, and cannot "
        "be added, weighted or truncated by themselves",
        details=[shown(site.name) for site in of_dora][:20],
        remedy="merge it into the base, or extract a LoRA from that: adapterhub extract",
    )


def _biases(meanings: Sequence[Meaning]) -> dict[str, tuple[tuple[int, BiasDelta], ...]]:
    found: dict[str, list[tuple[int, BiasDelta]]] = {}
    for number, meaning in enumerate(meanings):
        for part in meaning:
            if isinstance(part, BiasDelta):
                found.setdefault(part.module, []).append((number, part))
    return {module: tuple(parts) for module, parts in sorted(found.items())}
