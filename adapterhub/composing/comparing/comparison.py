"""What `compare` found: plain data, by module and in all."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import combinations
from typing import Any

from adapterhub.composing.comparing.figures import Meeting, Overlap, Signs, cosine

Pair = tuple[int, int]


@dataclass(frozen=True)
class Met:
    """Two adapters, by their places in the list, in one module or in all.

    `sign_conflicts`: the share of the elements looked at that are not 0 in either delta and differ
    in sign; `both_change`: the share that is not 0 in either. `modules`: how many they have both.
    None is what nothing can be said of: the cosine with a delta of zeros, subspaces of a delta that
    is not known by factors.
    """

    pair: Pair
    cosine: float | None
    sign_conflicts: float | None
    both_change: float | None
    columns: Overlap | None
    rows: Overlap | None
    modules: int = 1


@dataclass(frozen=True)
class ModuleComparison:
    """`norms`, `of_base` (relative to the weight that is changed): one for each adapter, None where
    it leaves the module alone or the base is not at hand. `looked_at`: the share of the elements
    whose signs were compared, None where there was nothing to compare with."""

    module: str
    shape: tuple[int, int]
    matrices: int
    norms: tuple[float | None, ...]
    of_base: tuple[float | None, ...]
    looked_at: float | None
    pairs: tuple[Met, ...]

    @property
    def cosine(self) -> float | None:
        """The mean over the pairs."""
        return mean([met.cosine for met in self.pairs])


@dataclass(frozen=True)
class Compared:
    """One of the adapters. `norm`: of its whole delta; `of_base`: relative to the weights that it
    changes, as far as these are at hand. `left_out`: its tensors that were not compared, and why.
    """

    name: str
    digest: str | None
    method: str
    variants: tuple[str, ...]
    base: str | None
    modules: int
    norm: float
    of_base: float | None
    left_out: tuple[str, ...]


@dataclass(frozen=True)
class Bases:
    """`relation`: "same" by digest, "by name", "different" or "unknown"; `said`: why."""

    pair: Pair
    relation: str
    said: str


@dataclass(frozen=True)
class Comparison:
    """`shapes`: modules that adapters have in different shapes, a sentence each; those are not
    compared. `looked_at`: the share of the elements whose signs were compared."""

    adapters: tuple[Compared, ...]
    bases: tuple[Bases, ...]
    pairs: tuple[Met, ...]
    modules: tuple[ModuleComparison, ...]
    shapes: tuple[str, ...]
    looked_at: float | None
    notes: tuple[str, ...] = ()

    @property
    def cosine(self) -> list[list[float | None]]:
        """adapters × adapters, of all modules together."""
        count = len(self.adapters)
        made: list[list[float | None]] = [[None] * count for _ in range(count)]
        for number, adapter in enumerate(self.adapters):
            made[number][number] = 1.0 if adapter.norm else None
        for met in self.pairs:
            one, other = met.pair
            made[one][other] = made[other][one] = met.cosine
        return made

    def to_dict(self) -> dict[str, Any]:
        return {**asdict(self), "cosine": self.cosine}


# --- one module -------------------------------------------------------------------------------


@dataclass(frozen=True)
class Measured:
    """The sums over the matrices of one module, of which there are several with experts.

    `squares`: ‖Δ‖² by input; `weights`: the norm of what is changed, by input.
    """

    module: str
    shape: tuple[int, int]
    matrices: int
    squares: Mapping[int, float]
    weights: Mapping[int, float | None]
    meetings: Mapping[Pair, tuple[Meeting, ...]]
    signs: Mapping[Pair, tuple[Signs, ...]]

    @property
    def elements(self) -> int:
        return self.matrices * self.shape[0] * self.shape[1]

    @property
    def looked_at(self) -> int:
        return sum(each.looked_at for each in next(iter(self.signs.values()), ()))

    def inner(self, pair: Pair) -> float:
        return math.fsum(meeting.inner for meeting in self.meetings.get(pair, ()))

    def share(self, pair: Pair, field: str) -> float | None:
        """Of the elements looked at."""
        found = self.signs.get(pair, ())
        looked_at = sum(each.looked_at for each in found)
        return sum(getattr(each, field) for each in found) / looked_at if looked_at else None


def of_module(one: Measured, count: int) -> ModuleComparison:
    """Of one module, with a place for each of `count` adapters."""
    norms = {number: math.sqrt(value) for number, value in one.squares.items()}
    return ModuleComparison(
        module=one.module,
        shape=one.shape,
        matrices=one.matrices,
        norms=tuple(norms.get(number) for number in range(count)),
        of_base=tuple(_over(norms.get(number), one.weights.get(number)) for number in range(count)),
        looked_at=_over(one.looked_at, one.elements) if one.signs else None,
        pairs=tuple(_met([one], pair, norms) for pair in one.meetings),
    )


def _over(value: float | None, whole: float | None) -> float | None:
    return value / whole if value is not None and whole else None


def _met(measured: Sequence[Measured], pair: Pair, norms: Mapping[int, float]) -> Met:
    """Of modules that both change, and the norms over all modules that each changes."""
    both = [one for one in measured if pair in one.meetings]
    inner = math.fsum(one.inner(pair) for one in both)
    return Met(
        pair=pair,
        cosine=cosine(inner, norms.get(pair[0], 0.0), norms.get(pair[1], 0.0)),
        sign_conflicts=_share(both, pair, "conflicts"),
        both_change=_share(both, pair, "both"),
        columns=_overlap([m.columns for one in both for m in one.meetings[pair]]),
        rows=_overlap([m.rows for one in both for m in one.meetings[pair]]),
        modules=len(both),
    )


def _share(both: Sequence[Measured], pair: Pair, field: str) -> float | None:
    """Each module counts by its size, however much of it was looked at."""
    known = [(one.elements, share) for one in both if (share := one.share(pair, field)) is not None]
    total = sum(elements for elements, _ in known)
    return math.fsum(elements * share for elements, share in known) / total if total else None


def _overlap(found: Sequence[Overlap | None]) -> Overlap | None:
    """The mean of the means, and the largest of all."""
    known = [each for each in found if each]
    if not known:
        return None
    return Overlap(
        math.fsum(each.mean for each in known) / len(known), max(each.largest for each in known)
    )


# --- in all -----------------------------------------------------------------------------------


def norms_of(measured: Sequence[Measured], count: int) -> dict[int, float]:
    """‖Δ‖ over all modules, by input."""
    return {
        number: math.sqrt(math.fsum(one.squares.get(number, 0.0) for one in measured))
        for number in range(count)
    }


def of_base(measured: Sequence[Measured], number: int) -> float | None:
    """‖Δ‖ / ‖W‖ over the modules whose weights are at hand."""
    known = [(one.squares[number], w) for one in measured if (w := one.weights.get(number))]
    if not known:
        return None
    return math.sqrt(math.fsum(s for s, _ in known) / math.fsum(w * w for _, w in known))


def in_all(measured: Sequence[Measured], count: int) -> tuple[Met, ...]:
    """Every pair of `count` adapters, over all modules."""
    norms = norms_of(measured, count)
    return tuple(_met(measured, pair, norms) for pair in combinations(range(count), 2))


def looked_at(measured: Sequence[Measured]) -> float | None:
    """The share of all elements that two adapters change."""
    both = [one for one in measured if one.signs]
    return _over(sum(one.looked_at for one in both), sum(one.elements for one in both))


def mean(values: Sequence[float | None]) -> float | None:
    """Of those that are known; None where none is."""
    known = [value for value in values if value is not None]
    return math.fsum(known) / len(known) if known else None
