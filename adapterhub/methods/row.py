"""A row of the table of methods: what the code says, and what the schema says."""

from __future__ import annotations

import importlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, cast

from adapterhub import schema
from adapterhub.methods.interface import Implementation

COMMON = "methods/_common"
ANNOTATION = "x-adapterhub"
PEFT_ITSELF = "through_peft"  # the file of the methods that peft computes


@dataclass(frozen=True)
class Mathematics:
    """What the method allows, whoever implements it.

    `merge`: "yes", "no", or "base" where the result hangs on the base's own weights, so that
    several such adapters cannot be added up. `attach`: "yes" or "no".
    """

    merge: str
    attach: str


@dataclass(frozen=True)
class Variant:
    """A named departure from the plain method: `field` of the config has one of `values`, and so
    has each field that stands `beside` it.
    """

    name: str
    field: str
    values: tuple[Any, ...]
    beside: Mapping[str, Sequence[Any]] | None = None

    def is_in(self, config: Mapping[str, Any]) -> bool:
        wanted = {self.field: self.values, **(self.beside or {})}
        return all(_is_one_of(config.get(name), values) for name, values in wanted.items())


def _is_one_of(value: Any, values: Iterable[Any]) -> bool:
    return any(type(value) is type(wanted) and value == wanted for wanted in values)


@dataclass(frozen=True)
class Method:
    """One row. `peft_type` is None where PEFT has no such method.

    `does`: what this version does with it beyond recognising it: "merge", "attach"; what merges
    attaches too, since attaching is a merge into a model in memory. What rank means, what the
    mathematics allows and the variants stand in the schema, under x-adapterhub.
    """

    name: str
    peft_type: str | None
    title: str
    paper: str | None
    does: tuple[str, ...] = ()
    file: str = "generic"
    schema: str = ""
    successor: str | None = None  # under which name peft has it now

    def __post_init__(self) -> None:
        if not self.schema:
            object.__setattr__(self, "schema", f"methods/{self.name}")
        if "merge" in self.does and "attach" not in self.does:
            object.__setattr__(self, "does", (*self.does, "attach"))

    @property
    def by(self) -> str:
        """The library that computes its merges, if that is not our own arithmetic."""
        return "peft" if self.file == PEFT_ITSELF else ""

    @property
    def implementation(self) -> Implementation:
        return cast(Implementation, importlib.import_module(f"adapterhub.methods.{self.file}"))

    @cached_property
    def _annotation(self) -> Mapping[str, Any]:
        return cast(Mapping[str, Any], schema.load(self.schema)[ANNOTATION])

    @property
    def rank(self) -> str | None:
        """What rank means for it, in a phrase; None where it has none."""
        return cast("str | None", self._annotation["rank"])

    @property
    def mathematics(self) -> Mathematics:
        return Mathematics(**self._annotation["mathematics"])

    @property
    def note(self) -> str:
        return str(self._annotation.get("note", ""))

    def fields(self) -> frozenset[str]:
        """Names of the config fields that this version knows."""
        return frozenset(self.properties)

    @property
    def properties(self) -> Mapping[str, Any]:
        """The schema of each field, by its name."""
        return {**schema.load(COMMON)["properties"], **schema.load(self.schema)["properties"]}

    def variants(self, config: Mapping[str, Any]) -> tuple[str, ...]:
        """Named departures from the plain method that the config asks for, sorted."""
        own = getattr(self.implementation, "variants", None)
        if own is not None:
            return cast("tuple[str, ...]", own(config))
        found = (
            Variant(v["name"], v["field"], tuple(v["values"]), v.get("beside"))
            for v in self._variants
        )
        return tuple(sorted(variant.name for variant in found if variant.is_in(config)))

    @property
    def _variants(self) -> list[Mapping[str, Any]]:
        return list(self._annotation.get("variants", ()))

    def to_dict(self) -> dict[str, Any]:
        """Everything, for programs."""
        allowed = self.mathematics
        return {
            "name": self.name,
            "peft_type": self.peft_type,
            "title": self.title,
            "paper": self.paper,
            "schema": self.schema,
            "file": self.file,
            "by": self.by,
            "rank": self.rank,
            "note": self.note,
            "mathematics": {"merge": allowed.merge, "attach": allowed.attach},
            "this_version": {verb: verb in self.does for verb in ("merge", "attach")},
            "variants": sorted(self.variant_names()),
            "successor": self.successor,
        }

    def variant_names(self) -> list[str]:
        own = getattr(self.implementation, "variant_names", None)
        return list(own()) if own is not None else [v["name"] for v in self._variants]
