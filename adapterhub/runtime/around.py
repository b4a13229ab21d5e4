"""What a change of a live model's parameter may know of the others: see `Surroundings`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from adapterhub._introspect.saving import kind_of
from adapterhub.registry.around import BaseAround
from adapterhub.runtime.live import Live, in_memory
from adapterhub.tensorfile import Tensor


class Kept(Protocol):
    """Original values of what is, or is about to be, changed."""

    def value(self, name: str) -> Tensor | None:
        """None where the model has it still."""


class NothingKept:
    """For a plan that is not carried out."""

    def value(self, name: str) -> Tensor | None:
        return None


@dataclass(frozen=True)
class LiveAround(BaseAround):
    """Read while other tensors change: their originals are kept before the first of them does."""

    live: Live
    kept: Kept

    def tensor(self, stored: str) -> Tensor | None:
        there = self.live.tensors.get(stored)
        if there is None:
            return None
        first = self.live.shared.get(stored, (stored,))[0]
        return self.kept.value(first) or in_memory(there.live)

    def linears(self) -> dict[str, tuple[int, int]]:
        """Under the model's own paths."""
        found = {}
        for path, module in self.live.model.named_modules():
            kind = kind_of(module)
            if kind == "Linear":
                found[path] = (module.out_features, module.in_features)
            elif kind == "Conv1D":
                found[path] = _turned(module)
        return found

    def ordered(self, modules: Sequence[str]) -> list[str] | None:
        places = {path: n for n, (path, _) in enumerate(self.live.model.named_modules())}
        own = {module: self.naming.stored(module) for module in modules}
        if any(path not in places for path in own.values()):
            return None
        return sorted(modules, key=lambda module: places[own[module]])


def _turned(module: Any) -> tuple[int, int]:
    into, out = module.weight.shape
    return int(out), int(into)
