"""The matrices inside one tensor to which adapters add, as they are collected."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import pairwise

from adapterhub.errors import NotMergeable
from adapterhub.merging.work import Change, Slab, Source, Term


class Slabs:
    """Those of one tensor of the base, `stored`."""

    def __init__(self, stored: str, sources: Sequence[Source]) -> None:
        self._stored = stored
        self._sources = sources
        self._by_start: dict[int, Slab] = {}

    @property
    def owners(self) -> Iterator[Term | Change]:
        return (owner for slab in self._by_start.values() for owner in slab.owners)

    def add(self, slab: Slab) -> None:
        """Take in a slab with one owner. Raises NotMergeable where it cannot join what is there."""
        there = self._by_start.get(slab.first)
        if there is not None:
            self._refuse(there, slab)
            slab = replace(there, terms=there.terms + slab.terms)
        self._by_start[slab.first] = slab

    def ordered(self) -> tuple[Slab, ...]:
        """By their elements. Raises NotMergeable for two that overlap."""
        found = tuple(slab for _, slab in sorted(self._by_start.items()))
        for one, other in pairwise(found):
            if one.first + one.size > other.first:
                raise self._apart(one, other)
        return found

    def _refuse(self, there: Slab, new: Slab) -> None:
        one, other = there.owners[-1], new.owners[0]
        if one.source == other.source:
            raise NotMergeable(
                f"{self._name(one)}: {one.key} and {other.key} are both {self._stored}",
                remedy="re-export the adapter with one pair for each tensor",
            )
        if there.change is not None or new.change is not None:
            raise NotMergeable(
                f"{self._name(one)} and {self._name(other)} both change {self._stored}, and one of "
                "them multiplies it: the order would matter",
                remedy="leave one out, or merge them one after the other in the order you want",
            )
        if there.magnitude is not None or new.magnitude is not None:
            raise NotMergeable(
                f"{self._name(one)} and {self._name(other)} both change {self._stored}: a DoRA "
                "magnitude cannot be scaled or added",
                remedy="leave one of the adapters out",
            )
        if (there.shape, there.transposed) != (new.shape, new.transposed):
            raise self._apart(there, new)

    def _apart(self, one: Slab, other: Slab) -> NotMergeable:
        return NotMergeable(
            f"{self._name(one.owners[0])} and {self._name(other.owners[0])} divide {self._stored} "
            "into different matrices",
            remedy="merge them one after the other",
        )

    def _name(self, owner: Term | Change) -> str:
        return self._sources[owner.source].name
