"""How deltas become one: a row for each method, with its paper and its parameters."""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

from adapterhub.composing.cases import checked
from adapterhub.composing.factored import Factors, Matrix
from adapterhub.composing.methods.parameters import Parameter
from adapterhub.errors import InvalidOption


@dataclass(frozen=True, eq=False)
class Delta:
    """What one input adds to one matrix: `scale`·b·a (both fp32), times the user's `weight`."""

    number: int
    weight: float
    scale: float
    factors: Factors

    def double(self) -> Factors:
        """Δ in fp64 with its scale, without the weight."""
        both = self.factors.double()
        return Factors(self.scale * both.b, both.a)

    def dense(self) -> Matrix:
        """Δ as an fp32 matrix (out, in) with its scale, without the weight."""
        made = self.factors.b @ self.factors.a
        made *= self.scale
        return made


@dataclass(frozen=True)
class Given:
    """What a method is told beside the deltas of one matrix of shape (out, in).

    `seed`: of this matrix alone, 128 bits. `inputs`: how many adapters are composed, those that
    leave this matrix alone included, and `weights` those of all of them. `numbers`: whose deltas
    are given, in their order.
    """

    shape: tuple[int, int]
    parameters: Mapping[str, Any]
    seed: int
    inputs: int
    weights: tuple[float, ...] = ()
    numbers: tuple[int, ...] = ()


@dataclass(frozen=True, eq=False)
class Made:
    """scale·b·a"""

    factors: Factors
    scale: float = 1.0


class OnFactors(Protocol):
    """A method that needs no dense matrix: the result is known by its factors."""

    def __call__(self, deltas: Sequence[Delta], given: Given) -> Made: ...


class OnDense(Protocol):
    """A method that looks at elements. Gives fp32 (out, in), by preference in one of `deltas`.

    `deltas`: fp32 (out, in) of the inputs that change this matrix, its to overwrite, with their
    `weights`; the caller drops them.
    """

    def __call__(self, deltas: list[Matrix], weights: Sequence[float], given: Given) -> Matrix: ...


@dataclass(frozen=True)
class Method:
    """`kind`: what it works on; "tensors" is for adapters that have no factors, by `tensorwise`.
    `function`: its name in the module `file` of this room; "tensors" have none.

    `exact`: its result has the same bits on every machine, if it is not truncated. `inputs`: how
    few and how many adapters it takes. `averages`: the weights are divided by their sum.
    `equal_ranks`: the factors of one module must have one rank. `largest_rank`: results are
    truncated to the largest rank of the inputs, unless something else is asked. `check`: its
    function in `file` that refuses settings or weights that do not go together. `biases`: those of
    lora_B add up by the weights beside it; else the weights are not what decides.
    """

    name: str
    title: str
    paper: str | None
    kind: Literal["factors", "dense", "tensors"]
    file: str = ""
    function: str = ""
    parameters: tuple[Parameter, ...] = ()
    exact: bool = False
    averages: bool = False
    inputs: tuple[int, int | None] = (1, None)
    seeded: bool = False
    equal_ranks: bool = False
    largest_rank: bool = False
    check: str = ""
    biases: bool = True
    note: str = field(default="")

    @property
    def adds_up(self) -> bool:
        """Whether the result is the sum of the weighted deltas, of whatever kind they are."""
        return self.function == "total"

    @property
    def apply(self) -> Any:
        """An OnFactors or an OnDense, by `kind`."""
        return self._named(self.function)

    def _named(self, name: str) -> Any:
        return getattr(importlib.import_module(f"adapterhub.composing.methods.{self.file}"), name)

    def settings(self, given: Mapping[str, Any]) -> dict[str, Any]:
        """All parameters, with defaults. Raises InvalidOption for unknown ones and wrong values."""
        known = {parameter.name: parameter for parameter in self.parameters}
        if unknown := sorted(map(str, given.keys() - known.keys())):
            has = ", ".join(known)
            raise InvalidOption(
                f"{self.name} has no parameter {unknown[0]!r}",
                remedy=f"its parameters: {has}" if has else "leave it away: it has none",
            )
        return {
            name: checked(given[name], parameter.check) if name in given else parameter.default
            for name, parameter in known.items()
        }

    def check_together(self, settings: Mapping[str, Any], weights: Sequence[float]) -> None:
        """Raises InvalidOption for settings and weights that make no sense together."""
        if self.check:
            self._named(self.check)(settings, weights)

    def check_count(self, count: int) -> None:
        """Raises InvalidOption for fewer or more adapters than it takes."""
        few, many = self.inputs
        if count < few or (many is not None and count > many):
            wanted = (
                f"{few}" if few == many else f"{few} or more" if many is None else f"{few}-{many}"
            )
            raise InvalidOption(
                f"{self.name} takes {wanted} adapters, {count} were given",
                remedy="sum, average, ties and others take any number: compose --methods",
            )

    def to_dict(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "title": self.title,
            "paper": self.paper,
            "on": self.kind,
            "reproducible": self.exact,
            "parameters": {
                p.name: {"default": p.default, "range": p.range, "help": p.help}
                for p in self.parameters
            },
            "note": self.note,
        }
