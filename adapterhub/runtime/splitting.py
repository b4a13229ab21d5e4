"""Names that share one weight, each with a weight of its own while an adapter makes them differ.

PEFT wraps the module that is named, and leaves what is tied to it as it was; a merge writes both
tensors. In memory the module gets another parameter, and at the end the shared one again.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import TYPE_CHECKING, Any

from adapterhub.errors import NotMergeable
from adapterhub.merging.ties import differ, refuse_unread
from adapterhub.merging.work import Work
from adapterhub.runtime.live import Live, in_memory
from adapterhub.tensorfile import Tensor

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Apart:
    """A parameter of a module that has `own` in the place of `shared`."""

    module: Any
    leaf: str
    shared: torch.nn.Parameter
    own: torch.nn.Parameter

    def put(self, parameter: torch.nn.Parameter) -> None:
        self.module._parameters[self.leaf] = parameter


Parted = Mapping[str, Apart]


def untied(live: Live, works: Mapping[str, Work]) -> tuple[dict[str, Work], frozenset[str]]:
    """The works by one name for each weight, and those names that need a weight of their own.

    Raises NotMergeable where a module of several names would differ from itself.
    """
    found, split = dict(works), set()
    for group in live.groups:
        if not any(name in works for name in group):
            continue
        if not _differ(works, group):
            for name in group[1:]:
                del found[name]
            continue
        refuse_unread(group, works)
        for names in _modules(live, group):
            if not any(name in works for name in names):
                continue
            if _differ(works, names):
                raise NotMergeable(
                    f"{' and '.join(names)} are one parameter of one module, which the adapter "
                    "changes under some of its names only",
                    remedy="adapterhub merge BASE ADAPTER --out DIR, and load DIR",
                )
            split.add(names[0])
            for name in names[1:]:
                del found[name]
    return found, frozenset(split)


def _differ(works: Mapping[str, Work], names: Sequence[str]) -> bool:
    here = [works[name] for name in names if name in works]
    return len(here) < len(names) or any(differ(a, b) for a, b in combinations(here, 2))


def _modules(live: Live, group: Sequence[str]) -> Iterator[list[str]]:
    """The names of each module among those of one weight."""
    found: dict[tuple[int, str], list[str]] = {}
    for name in group:
        path, _, leaf = name.rpartition(".")
        found.setdefault((id(live.model.get_submodule(path)), leaf), []).append(name)
    yield from found.values()


def part(live: Live, names: Iterable[str], kept: Parted) -> Parted:
    """Gives each of `names` a parameter of its own, without values yet, or that of `kept`."""
    return {name: kept.get(name) or _apart(live, name) for name in names}


def _apart(live: Live, name: str) -> Apart:
    import torch

    path, _, leaf = name.rpartition(".")
    module, shared = live.model.get_submodule(path), live.held[name]
    own = torch.nn.Parameter(torch.empty_like(shared), requires_grad=shared.requires_grad)
    return Apart(module, leaf, shared, own)


def apply(parted: Parted, live: Live | None = None) -> None:
    for name, apart in parted.items():
        apart.put(apart.own)
        if live is not None:
            live.held[name] = apart.own


def join(parted: Parted, live: Live | None = None) -> None:
    for name, apart in parted.items():
        apart.put(apart.shared)
        if live is not None:
            live.held[name] = apart.shared


def sources(live: Live, parted: Parted, originals: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """What each starts from: the shared weight as it was before anything was attached."""
    found = {}
    for name, apart in parted.items():
        first = live.shared.get(name, (name,))[0]
        found[name] = originals.get(first) or in_memory(apart.shared)
    return found


def nbytes(parted: Parted) -> int:
    return sum(apart.own.nbytes for apart in parted.values())
