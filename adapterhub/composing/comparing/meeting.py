"""Where the additive changes of several adapters meet, whatever their methods."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from adapterhub.composing.comparing.figures import Delta as Known
from adapterhub.composing.comparing.figures import DenseDelta, low_rank
from adapterhub.composing.factored import Factors, Matrix, finite, stacked
from adapterhub.composing.inputs import Input
from adapterhub.composing.sites import Term, read, refuse_empty, sites
from adapterhub.errors import NotMergeable
from adapterhub.methods import BiasDelta, Delta, Meaning

_NUMBER = re.compile("[0-9]{1,9}")


@dataclass(frozen=True)
class Form:
    """What has to agree for deltas to be comparable. `shape`: (out, in), a kernel flattened into
    `in`, of one expert where there are several."""

    shape: tuple[int, int]
    layout: str = "linear"
    kernel: tuple[int, ...] = ()
    experts: int = 0

    def __str__(self) -> str:
        text = str(list(self.shape))
        text = f"{self.experts} experts of {text}" if self.experts else text
        return f"{text} of an embedding" if self.layout == "embedding" else text


@dataclass(frozen=True)
class Addition:
    """What input `number` adds to one parameter: the sum of `terms` and of `whole` deltas."""

    number: int
    module: str
    form: Form
    terms: tuple[Term, ...] = ()
    whole: tuple[Delta | BiasDelta, ...] = ()

    def read(self) -> Iterator[Known]:
        """The delta of each matrix: one, or one for each expert. Raises NotMergeable."""
        if self.whole:
            yield self._dense()
            return
        readers = [read(term) for term in self.terms]
        for _ in range(max(1, self.form.experts)):
            parts = [
                _scaled(next(reader), term.part.scale)
                for term, reader in zip(self.terms, readers, strict=True)
            ]
            yield low_rank(stacked(parts))

    def _dense(self) -> DenseDelta:
        if len(self.whole) == 1 and not self.terms:
            return DenseDelta(self._values(self.whole[0]), self.whole[0].scale)
        total: Matrix = np.zeros(self.form.shape)
        for part in self.whole:
            total += part.scale * self._values(part)
        for term in self.terms:
            both = _scaled(next(read(term)), term.part.scale)
            total += both.b @ both.a
        return DenseDelta(total, 1.0)

    def _values(self, part: Delta | BiasDelta) -> Matrix:
        values = finite(
            np.asarray(part.value.read(), np.float32), f"{self.module} has a delta with"
        )
        return values.reshape(self.form.shape)


def _scaled(factors: Factors, scale: float) -> Factors:
    both = factors.double()
    return Factors(scale * both.b, both.a)


@dataclass(frozen=True)
class Place:
    """One parameter, and the inputs that add to it in one form, in their order."""

    name: str
    module: str
    form: Form
    additions: tuple[Addition, ...]


def places(
    inputs: Sequence[Input], meanings: Sequence[Meaning]
) -> tuple[tuple[Place, ...], tuple[str, ...]]:
    """Every parameter that an input adds to, layer 2 before layer 10; and where forms differ.

    A parameter for which inputs have several forms is a place for each of them.
    """
    found: dict[tuple[str, Form], list[Addition]] = {}
    for number, (source, meaning) in enumerate(zip(inputs, meanings, strict=True)):
        for name, addition in _additions(number, source, meaning).items():
            found.setdefault((name, addition.form), []).append(addition)
    made = [
        Place(name, additions[0].module, form, tuple(additions))
        for (name, form), additions in found.items()
    ]
    made.sort(key=lambda place: (natural(place.name), place.additions[0].number))
    return tuple(made), tuple(_different(inputs, made))


def natural(name: str) -> list[tuple[int, str]]:
    """A key that sorts numbers in names as numbers."""
    return [(int(part), "") if _NUMBER.fullmatch(part) else (-1, part) for part in name.split(".")]


def _different(inputs: Sequence[Input], made: Sequence[Place]) -> Iterator[str]:
    by_name: dict[str, list[Place]] = {}
    for place in made:
        by_name.setdefault(place.name, []).append(place)
    for name, alike in by_name.items():
        if len(alike) > 1:
            said = [
                f"{place.form} in {', '.join(inputs[a.number].name for a in place.additions)}"
                for place in alike
            ]
            yield f"{name}: {'; '.join(said)}"


def _additions(number: int, source: Input, meaning: Meaning) -> dict[str, Addition]:
    """Of one adapter, by the name of the parameter."""
    found: dict[str, Addition] = {}
    for site in sites([source], [meaning]):
        form = Form(site.shape, site.layout, site.kernel, site.experts)
        found[site.name] = Addition(number, site.module, form, terms=site.terms)
    for part in meaning:
        if isinstance(part, Delta | BiasDelta):
            bias = isinstance(part, BiasDelta) or part.parameter == "bias"
            name = f"{part.module}.bias" if bias else part.module
            refuse_empty(part.module, part.value.shape)
            form = _form(part.value.shape)
            known = found.get(name, Addition(number, part.module, form))
            _check(known, form)
            found[name] = replace(known, whole=(*known.whole, part))
    return found


def _form(shape: tuple[int, ...]) -> Form:
    return Form((shape[0] if shape else 1, math.prod(shape[1:])), kernel=tuple(shape[2:]))


def _check(known: Addition, form: Form) -> None:
    """Raises NotMergeable where an adapter contradicts itself."""
    if known.form.shape != form.shape or known.form.experts:
        raise NotMergeable(
            f"{known.module} is changed twice, as {known.form} and as {form}",
            remedy="the adapter is damaged; get it anew",
        )
