"""What a composition will do, checked before any of it is done."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from typing import Any

from adapterhub.composing.cases import Cases, checked, of, unused
from adapterhub.composing.factored import check_rank, check_share
from adapterhub.composing.inputs import Input, cancels, check_bases, check_weight
from adapterhub.composing.methods.row import Method
from adapterhub.composing.methods.table import method
from adapterhub.composing.sites import Site, Term, refuse_spellings, sites
from adapterhub.composing.wholes import REFUSE, Wholes, wholes
from adapterhub.errors import InvalidOption, NotMergeable, NotSupported
from adapterhub.methods import BiasDelta, Meaning
from adapterhub.methods import method as adapter_method
from adapterhub.tensorfile import shown

AS_LORA = "what adds to weights becomes a LoRA by adapterhub resize ADAPTER --rank 16 --name NAME"
_FOR_RANKS = {"peft_linear": "sum, peft_cat or peft_svd"}  # others have a variant on the deltas


@dataclass(frozen=True)
class Options:
    """`rank`, `energy`: what the result is truncated to; None leaves it as the method makes it.
    These, the values of `parameters`, and `weights` (by the number of the input, in the place of
    its own) may be Cases, which hang on the module.

    `whole`: what becomes of tensors that are saved whole and differ, "refuse", "average", or the
    number of the input that is taken. `seed`: of methods that drop elements by chance.
    """

    method: str = "sum"
    parameters: Mapping[str, Any] = field(default_factory=dict)
    rank: int | Cases | None = None
    energy: float | Cases | None = None
    weights: Mapping[int, float | Cases] = field(default_factory=dict)
    whole: str | int = REFUSE
    seed: int = 0
    force_base: bool = False

    def __post_init__(self) -> None:
        checked(self.rank, check_rank)
        checked(self.energy, partial(check_share, "energy"))
        for number, weight in self.weights.items():
            checked(weight, partial(check_weight, f"adapter {number + 1}"))
        is_number = isinstance(self.seed, int) and not isinstance(self.seed, bool)
        if not is_number or not 0 <= self.seed < 1 << 64:
            raise InvalidOption(
                f"seed {self.seed!r:.60}", remedy="a seed is a whole number from 0 to 2⁶⁴ - 1"
            )
        self.settings()

    def settings(self) -> dict[str, Any]:
        """The method's parameters. Raises InvalidOption, as for a method that is not known."""
        return method(self.method).settings(self.parameters)


@dataclass(frozen=True)
class Plan:
    """`inputs` as the user gave them; `weights` as they count where no Cases say otherwise, which
    average divides by their sum."""

    inputs: tuple[Input, ...]
    weights: tuple[float, ...]
    method: Method
    parameters: Mapping[str, Any]
    options: Options
    sites: tuple[Site, ...]
    biases: Mapping[str, tuple[tuple[int, BiasDelta], ...]]
    wholes: Wholes
    notes: tuple[str, ...]

    def size(self, site: Site) -> tuple[int | None, float | None]:
        """The rank and the energy that this module is truncated to; None: it is not by that."""
        rank, energy = of(self.options.rank, site.name), of(self.options.energy, site.name)
        if self.method.largest_rank and rank is None and energy is None:
            rank = self._largest_rank
        return rank, energy

    def settings(self, site: Site) -> dict[str, Any]:
        """The method's parameters for this module."""
        defaults = {parameter.name: parameter.default for parameter in self.method.parameters}
        return {k: of(v, site.name, defaults[k]) for k, v in self.parameters.items()}

    def weights_of(self, site: Site) -> tuple[float, ...]:
        """Those of all inputs, as they count for this module."""
        return _weights_of(self.method, self.inputs, self.options, site)

    @cached_property
    def _largest_rank(self) -> int:
        return max((term.rank for site in self.sites for term in site.terms), default=1)

    @property
    def exact(self) -> bool:
        """Whether every machine makes the same bits."""
        cut = any(self.size(site) != (None, None) for site in self.sites)
        return self.method.exact and not cut


def plan(inputs: Sequence[Input], options: Options) -> Plan:
    """Of LoRAs. Raises InvalidOption, BaseMismatch, NotMergeable, NotSupported; reads no values but
    where tensors are saved whole."""
    row, parameters, weights, notes = checked_request(inputs, options)
    if row.kind == "tensors":
        raise NotSupported(f"LoRAs cannot be composed by {row.name}", remedy="--method sum")
    meanings = [_meaning(each) for each in inputs]
    found = sites(inputs, meanings)
    refuse_spellings(inputs, found)
    firsts = _firsts(inputs)
    settled = [
        _settled(row, site, _weights_of(row, inputs, options, site), firsts) for site in found
    ]
    _refuse_dora(inputs, settled, row, options)
    _refuse_ranks(inputs, settled, row)
    notes += _unused(options, settled)
    biases = _biases(meanings)
    _refuse_biases(row, parameters, biases)
    made = Plan(
        inputs=tuple(inputs),
        weights=weights,
        method=row,
        parameters=parameters,
        options=options,
        sites=tuple(settled),
        biases=biases,
        wholes=wholes(inputs, weights, meanings, options.whole),
        notes=tuple(notes),
    )
    for site in settled:
        row.check_together(made.settings(site), made.weights_of(site))
    return made


def checked_request(
    inputs: Sequence[Input], options: Options
) -> tuple[Method, dict[str, Any], tuple[float, ...], list[str]]:
    """The method, its parameters, the weights as they count, and notes, whatever is composed.

    Raises InvalidOption, NotSupported for adapters of several methods, BaseMismatch.
    """
    row = method(options.method)
    row.check_count(len(inputs))
    parameters = row.settings(options.parameters)
    names = sorted({each.adapter.method for each in inputs})
    if len(names) > 1:
        raise NotSupported(
            f"{' and '.join(names)} cannot be composed with each other",
            details=[f"{each.name}: {each.adapter.method}" for each in inputs],
            remedy=f"compose adapters of one method; {AS_LORA}",
        )
    notes = check_bases(inputs, force=options.force_base)
    notes += _idle(parameters)
    return row, parameters, _weights(row, [each.weight for each in inputs]), notes


def _idle(parameters: Mapping[str, Any]) -> list[str]:
    """What a method that drops elements is told so that it drops none."""
    if parameters.get("density") != 1:
        return []
    return ["density is 1: no element is dropped; density=0.2 keeps a fifth of them"]


def _unused(options: Options, found: Sequence[Site]) -> list[str]:
    given = (options.rank, options.energy, *options.weights.values(), *options.parameters.values())
    filters = unused(given, [site.name for site in found])
    return [f"no module fits the filter {shown(each)}" for each in filters]


def _weights_of(
    row: Method, inputs: Sequence[Input], options: Options, site: Site
) -> tuple[float, ...]:
    """Those of one module."""
    given = options.weights
    own = [of(given.get(n, each.weight), site.name, each.weight) for n, each in enumerate(inputs)]
    return _weights(row, own)


def _weights(row: Method, given: Sequence[float]) -> tuple[float, ...]:
    """As they count: those of an average are divided by their sum."""
    weights = tuple(given)
    if not row.averages:
        return weights
    total = sum(weights)
    if not math.isfinite(total):
        raise InvalidOption(
            "the weights of an average are too large to be added up", remedy="give smaller weights"
        )
    if cancels(weights):
        raise InvalidOption(
            "the weights of an average add up to 0", remedy="give other weights, or --method sum"
        )
    return tuple(weight / total for weight in weights)


def _meaning(source: Input) -> Meaning:
    """Raises NotMergeable, which names the adapter."""
    try:
        return adapter_method(source.adapter.method).implementation.meaning(source.adapter)
    except NotMergeable as error:
        raise NotMergeable(
            f"{source.name}: {error.message}", details=error.details, remedy=error.remedy
        ) from error


def _firsts(inputs: Sequence[Input]) -> list[int]:
    """For each input the number of the first that is the same adapter."""
    return [
        next(number for number, first in enumerate(inputs) if first.same(each)) for each in inputs
    ]


def _settled(row: Method, site: Site, weights: Sequence[float], firsts: Sequence[int]) -> Site:
    """Terms with the weights that count; of a sum, those of one adapter given twice are one."""
    terms = [replace(term, weight=weights[term.number]) for term in site.terms]
    if not row.adds_up:
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
    if alone and row.adds_up and not _is_cut(row, options):
        return
    names = sorted({inputs[t.number].name for s in of_dora for t in s.terms if t.part.magnitude})
    raise NotMergeable(
        f"{' and '.join(names)} is a DoRA: its magnitudes hang on the base's weights, and cannot "
        "be added, weighted or truncated by themselves",
        details=[shown(site.name) for site in of_dora],
        remedy="merge it into the base, or extract a LoRA from that: adapterhub extract",
    )


def _is_cut(row: Method, options: Options) -> bool:
    return options.rank is not None or options.energy is not None or row.largest_rank


def _refuse_ranks(inputs: Sequence[Input], found: Sequence[Site], row: Method) -> None:
    """Raises NotMergeable, with every module of several ranks, for a method that adds factors."""
    unlike = [site for site in found if len({term.rank for term in site.terms}) > 1]
    if not row.equal_ranks or not unlike:
        return
    raise NotMergeable(
        f"{row.name} needs factors of one rank; {len(unlike)} modules have several",
        details=[
            f"{shown(site.name)}: "
            + ", ".join(f"{term.rank} in {inputs[term.number].name}" for term in site.terms)
            for site in unlike
        ],
        remedy=f"--method {_FOR_RANKS.get(row.name, f'{row.name}_svd')} takes any ranks",
    )


def _refuse_biases(
    row: Method, parameters: Mapping[str, Any], biases: Mapping[str, object]
) -> None:
    """Where the weights alone do not say how much of each delta comes, they say it of no bias."""
    usual = {parameter.name: parameter.default for parameter in row.parameters}.get("normalize")
    normalize = parameters.get("normalize")
    unsaid = [m for m in biases if not row.biases or of(normalize, m, usual) is True]
    if unsaid:
        raise NotMergeable(
            f"{row.name} does not say what becomes of the biases of lora_B",
            details=[shown(f"{module}.lora_B.bias") for module in unsaid],
            remedy="compose them by sum or average",
        )


def _biases(meanings: Sequence[Meaning]) -> dict[str, tuple[tuple[int, BiasDelta], ...]]:
    found: dict[str, list[tuple[int, BiasDelta]]] = {}
    for number, meaning in enumerate(meanings):
        for part in meaning:
            if isinstance(part, BiasDelta):
                found.setdefault(part.module, []).append((number, part))
    return {module: tuple(parts) for module, parts in sorted(found.items())}
