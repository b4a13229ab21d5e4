"""Where the deltas of several LoRA adapters meet: by module and parameter, each input's factors.

A delta is a matrix (out, in): a convolution's kernel is flattened into `in`, an embedding's delta
is its transpose, and each expert of a fused parameter is a matrix of its own.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import permutations

import numpy as np

from adapterhub.composing.factored import Factors, Matrix, finite
from adapterhub.composing.inputs import Input
from adapterhub.errors import BaseMismatch, NotMergeable
from adapterhub.methods import LowRank, Meaning
from adapterhub.methods.lora_config import parse
from adapterhub.methods.meaning import Layout
from adapterhub.registry.experts import swapped_in_and_out
from adapterhub.tensorfile import Tensor, shown

ROLES = ("lora_A", "lora_B")


@dataclass(frozen=True)
class Term:
    """What input `number` adds to a site: `weight` (the user's) × `scale` (alpha / rank) × B·A."""

    number: int
    weight: float
    part: LowRank
    rank: int

    @property
    def coefficient(self) -> float:
        return self.weight * self.part.scale


@dataclass(frozen=True)
class Site:
    """One parameter that deltas are added to, and who adds to it, in the order of the inputs.

    `kernel`: the kernel of a convolution, () elsewhere. `experts`: how many, 0 where there are
    none. `shape`: (out, in) of the formula, of one expert where there are several.
    """

    module: str
    parameter: str | None
    layout: Layout
    shape: tuple[int, int]
    kernel: tuple[int, ...]
    experts: int
    roles: tuple[str, ...]
    terms: tuple[Term, ...] = field(repr=False)

    @property
    def name(self) -> str:
        return f"{self.module}.{self.parameter}" if self.parameter else self.module

    @property
    def matrices(self) -> int:
        return max(1, self.experts)


def sites(inputs: Sequence[Input], meanings: Sequence[Meaning]) -> tuple[Site, ...]:
    """Every site that an input adapts, sorted by name.

    Raises BaseMismatch, with all of them, where inputs have different shapes for one parameter;
    NotMergeable for shapes without elements.
    """
    found: dict[tuple[str, str | None], list[Term]] = {}
    for number, (source, meaning) in enumerate(zip(inputs, meanings, strict=True)):
        for part in meaning:
            if isinstance(part, LowRank):
                refuse_empty(part.module, (*part.a.shape, *part.b.shape))
                term = Term(number, source.weight, part, _rank(source, part))
                found.setdefault((part.module, part.parameter), []).append(term)
    wrong = [said for terms in found.values() if (said := _misfit(inputs, terms))]
    if wrong:
        raise BaseMismatch(
            f"these adapters are not of one base: {len(wrong)} of their modules differ in shape",
            details=sorted(wrong),
            remedy="compose adapters of one base; adapterhub base identify ADAPTER tells which",
        )
    _refuse_turned(inputs, found.values())
    return tuple(_site(found[key]) for key in sorted(found, key=lambda key: (key[0], key[1] or "")))


def refuse_empty(module: str, shape: Sequence[int]) -> None:
    """Raises NotMergeable for a matrix without elements, which nothing can be said of."""
    if 0 in shape:
        raise NotMergeable(
            f"what is added to {shown(module)} is a matrix without elements",
            remedy="this adapter is damaged; get it anew",
        )


def _refuse_turned(inputs: Sequence[Input], found: Iterable[Sequence[Term]]) -> None:
    """Raises NotMergeable where some factors are for square experts and others for transposes."""
    for terms in found:
        out, into, experts = _sizes(terms[0])
        if experts < 2 or out != into:
            continue  # shapes tell
        turned = {swapped_in_and_out(inputs[t.number].adapter.config) for t in terms}
        if len(turned) > 1:
            raise NotMergeable(
                f"{shown(terms[0].part.module)}: the experts' matrices are square, and peft before "
                "0.19 took them for their transposes: these factors do not add up",
                details=[
                    f"{inputs[t.number].name}: peft "
                    f"{inputs[t.number].adapter.config.get('peft_version') or 'unknown'}"
                    for t in terms
                ],
                remedy="merge them into the base one after the other; or state the peft_version "
                "of each in adapter_config.json",
            )


def apart(modules: Sequence[Collection[str]]) -> tuple[int, int, str, str] | None:
    """Two adapters, by their numbers, that spell one module of a layer differently, and how.

    `encoder.layer.0.query` of a bare model is `bert.encoder.layer.0.query` of one with a head.
    `modules`: of each adapter. Two that have any in common spell alike.
    """
    for one, other in permutations(range(len(modules)), 2):
        if set(modules[one]) & set(modules[other]):
            continue
        ends = {end: name for name in sorted(modules[other]) for end in _ends(name)}
        for name in sorted(modules[one]):
            if name in ends and any(part.isdecimal() for part in name.split(".")):
                return one, other, name, ends[name]
    return None


def _ends(name: str) -> Iterator[str]:
    parts = name.split(".")
    return (".".join(parts[at:]) for at in range(1, len(parts)))


def refuse_spellings(inputs: Sequence[Input], found: Sequence[Site]) -> None:
    """Raises NotMergeable where deltas of one module would stand beside each other."""
    modules: list[set[str]] = [set() for _ in inputs]
    for site in found:
        for term in site.terms:
            modules[term.number].add(site.module)
    if (said := apart(modules)) is None:
        return
    one, other, name, longer = said
    raise NotMergeable(
        f"{inputs[one].name} and {inputs[other].name} were trained on different classes of one "
        "model, which spell its modules differently",
        details=[f"{name} in {inputs[one].name}", f"{longer} in {inputs[other].name}"],
        remedy="merge them together instead: adapterhub merge BASE ADAPTER ADAPTER --out DIR",
    )


def of_weight(module: str, shape: tuple[int, ...], *, embedding: bool = False) -> Site:
    """A site that no factors are for yet. `shape`: that of the weight, (out, in, *kernel), or of
    an embedding (tokens, width), whose delta is the transpose."""
    if embedding:
        tokens, width = shape
        roles = ("lora_embedding_A", "lora_embedding_B")
        return Site(module, None, "embedding", (width, tokens), (), 0, roles, ())
    sides = (shape[0], math.prod(shape[1:]))
    return Site(module, None, "linear", sides, shape[2:], 0, ROLES, ())


def _rank(source: Input, part: LowRank) -> int:
    if part.layout != "experts":
        return part.a.shape[0]
    return int(parse(source.adapter.config).rank(f"{part.module}.{part.parameter}"))


def _site(terms: Sequence[Term]) -> Site:
    part = terms[0].part
    out, into, experts = _sizes(terms[0])
    return Site(
        module=part.module,
        parameter=part.parameter,
        layout=part.layout,
        shape=(out, into),
        kernel=tuple(part.a.shape[2:]),
        experts=experts,
        roles=part.roles[:2],
        terms=tuple(terms),
    )


def _sizes(term: Term) -> tuple[int, int, int]:
    """out, in (with the kernel) and the number of experts."""
    a, b = term.part.a.shape, term.part.b.shape
    experts = a[0] // term.rank if term.part.layout == "experts" else 0
    return b[0], math.prod(a[1:]), experts


def _misfit(inputs: Sequence[Input], terms: Sequence[Term]) -> str:
    first = terms[0]
    for term in terms[1:]:
        alike = term.part.layout == first.part.layout and _sizes(term) == _sizes(first)
        if not alike or term.part.a.shape[2:] != first.part.a.shape[2:]:
            one, other = inputs[first.number].name, inputs[term.number].name
            return f"{first.part.module}: {_shown(first)} in {one}, {_shown(term)} in {other}"
    return ""


def _shown(term: Term) -> str:
    out, into, experts = _sizes(term)
    return f"{experts} experts of {[out, into]}" if experts else str([out, into])


def read(term: Term) -> Iterator[Factors]:
    """The factors of each matrix of a site, as the files have them, in fp32; one but for experts.

    Raises NotMergeable for values that are NaN or infinite.
    """
    a, b = _finite(term, term.part.a), _finite(term, term.part.b)
    if term.part.layout != "experts":
        yield Factors(b.reshape(b.shape[0], -1), a.reshape(a.shape[0], -1))
        return
    # a holds expert by expert, b rank by rank
    for one in range(a.shape[0] // term.rank):
        rows = slice(one * term.rank, (one + 1) * term.rank)
        yield Factors(b[:, one :: a.shape[0] // term.rank], a[rows])


def _finite(term: Term, tensor: Tensor) -> Matrix:
    with np.errstate(over="ignore", invalid="ignore"):
        values = np.asarray(tensor.read(), np.float32)
    return finite(values, f"{term.part.module} has a factor with")


def spelled(site: Site, matrices: Sequence[Factors]) -> tuple[Matrix, Matrix]:
    """a and b of a LoRA file, fp32, from the factors of each matrix, which have one rank."""
    if site.experts:
        a = np.concatenate([one.a for one in matrices], axis=0)
        b = np.stack([one.b for one in matrices], axis=2).reshape(site.shape[0], -1)
        return np.ascontiguousarray(a, np.float32), np.ascontiguousarray(b, np.float32)
    one = matrices[0]
    a = np.ascontiguousarray(one.a, np.float32)
    b = np.ascontiguousarray(one.b, np.float32)
    if site.kernel:
        a = a.reshape(one.rank, -1, *site.kernel)
        b = b.reshape(*b.shape, *(1 for _ in site.kernel))
    return a, b
