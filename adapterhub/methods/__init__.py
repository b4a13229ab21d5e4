"""What an adapter means: one file per method, one row per method in `TABLE`."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol, cast

from adapterhub.adapter import Adapter, Problem
from adapterhub.errors import NotSupported
from adapterhub.methods.meaning import BiasDelta, LowRank, Meaning, Part, Replacement, TokenRows
from adapterhub.methods.signature import Signature

__all__ = [
    "TABLE",
    "BiasDelta",
    "Implementation",
    "LowRank",
    "Meaning",
    "Method",
    "Part",
    "Ranks",
    "Replacement",
    "Signature",
    "TokenRows",
    "method",
]


@dataclass(frozen=True)
class Ranks:
    """Ranks as the tensors have them; `by_module` maps module path → rank."""

    by_module: Mapping[str, int]

    @property
    def lowest(self) -> int:
        return min(self.by_module.values())

    @property
    def highest(self) -> int:
        return max(self.by_module.values())


class Implementation(Protocol):
    """What each file of this room offers."""

    def fields(self) -> frozenset[str]:
        """Names of the config fields that this version knows."""

    def variants(self, config: Mapping[str, Any]) -> tuple[str, ...]:
        """Named departures from the plain method that the config asks for, sorted."""

    def problems(self, adapter: Adapter) -> list[Problem]:
        """Contradictions between config and tensors; those that spoil the result are fatal."""

    def ranks(self, adapter: Adapter) -> Ranks | None:
        """Rank of each module, from the tensors; None where the method has no rank."""

    def signature(self, adapter: Adapter) -> Signature:
        """What the tensors tell about the base that they belong to."""

    def parts(self, adapter: Adapter) -> Meaning:
        """What is understood of the adapter, for comparing it with a base."""

    def meaning(self, adapter: Adapter, *, base_is_initialised: bool = False) -> Meaning:
        """What a merge has to do. Raises NotMergeable, naming the variant.

        `base_is_initialised`: the base at hand is the one that the method's initialisation changed.
        """

    def idle(self, adapter: Adapter) -> tuple[tuple[str, str, str], ...]:
        """Module, role and reason of the tensors that nothing reads once training is over."""


@dataclass(frozen=True)
class Method:
    """One row: `schema` lies in schemas/, `file` in this room."""

    name: str
    peft_type: str
    title: str
    paper: str
    schema: str
    file: str

    @property
    def implementation(self) -> Implementation:
        return cast(Implementation, importlib.import_module(f"{__name__}.{self.file}"))

    def variants(self, config: Mapping[str, Any]) -> tuple[str, ...]:
        return self.implementation.variants(config)


TABLE: Mapping[str, Method] = {
    row.name: row
    for row in (
        Method(
            name="lora",
            peft_type="LORA",
            title="Low-rank adaptation",
            paper="https://arxiv.org/abs/2106.09685",
            schema="methods/lora",
            file="lora",
        ),
    )
}


def method(name: str) -> Method:
    """The row of a method. Raises NotSupported, with the methods that there are."""
    if name not in TABLE:
        raise NotSupported(
            f"method {name!r} is not supported by this version",
            remedy=f"supported methods: {', '.join(sorted(TABLE))}",
        )
    return TABLE[name]
