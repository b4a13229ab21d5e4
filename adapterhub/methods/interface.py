"""What each method's file offers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

from adapterhub.adapter import Adapter, Problem
from adapterhub.methods.meaning import Meaning
from adapterhub.methods.signature import Signature


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
    """The functions of each file that a row of the table names."""

    def problems(self, adapter: Adapter) -> list[Problem]:
        """Contradictions between config and tensors; those that spoil the result are fatal."""

    def ranks(self, adapter: Adapter) -> Ranks | None:
        """Rank of each module, from the tensors; None where the method has no rank."""

    def signature(self, adapter: Adapter) -> Signature:
        """What the tensors tell about the base that they belong to."""

    def parts(self, adapter: Adapter) -> Meaning:
        """What is understood of the adapter, for comparing it with a base."""

    def meaning(self, adapter: Adapter, *, base_is_initialised: bool = False) -> Meaning:
        """What a merge has to do. Raises NotMergeable, naming the method or the variant.

        `base_is_initialised`: the base at hand is the one that the method's initialisation changed.
        """

    def idle(self, adapter: Adapter) -> tuple[tuple[str, str, str], ...]:
        """Module, role and reason of the tensors that nothing reads once training is over."""
