"""Values that hang on the module: mergekit's `[{filter: mlp, value: 0.5}, {value: 0.3}]`."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any


@dataclass(frozen=True)
class Case:
    """`filter`: a part of the module's name, or of that of its weight, which mergekit compares; or
    with `*` or `?` a pattern for all of it; None is any module."""

    filter: str | None
    value: Any

    def holds(self, name: str) -> bool:
        """Whether it is meant for the module `name`."""
        if self.filter is None:
            return True
        if any(sign in self.filter for sign in "*?["):
            return fnmatchcase(name, self.filter)
        return self.filter in (f"{name}.weight" if name else "")


@dataclass(frozen=True)
class Cases:
    """The first that holds for a module decides."""

    cases: tuple[Case, ...]

    def of(self, name: str, default: Any = None) -> Any:
        """The value for the module `name`; `default` where no case holds."""
        return next((case.value for case in self.cases if case.holds(name)), default)

    def to_list(self) -> list[dict[str, Any]]:
        """As a recipe has it."""
        return [
            {"value": case.value} if case.filter is None else dict(case.__dict__)
            for case in self.cases
        ]


def parsed(value: Any) -> Any:
    """A value of a recipe: a list of cases becomes Cases, everything else stays."""
    if not isinstance(value, Sequence) or isinstance(value, str):
        return value
    return Cases(tuple(Case(row.get("filter"), row["value"]) for row in value))


def of(value: Any, name: str, default: Any = None) -> Any:
    """What `value` says of the module `name`."""
    return value.of(name, default) if isinstance(value, Cases) else value


def checked(value: Any, check: Callable[[Any], Any]) -> Any:
    """`check` of the value, or of every case's."""
    if not isinstance(value, Cases):
        return check(value)
    return Cases(tuple(Case(case.filter, check(case.value)) for case in value.cases))


def plain(values: Mapping[str, Any]) -> dict[str, Any]:
    """As JSON has it."""
    return {k: v.to_list() if isinstance(v, Cases) else v for k, v in values.items()}


def unused(values: Iterable[Any], names: Sequence[str]) -> list[str]:
    """The filters among `values` that hold for none of these modules."""
    cases = [case for value in values if isinstance(value, Cases) for case in value.cases]
    idle = {case.filter: None for case in cases if not any(map(case.holds, names))}
    return [each for each in idle if each is not None]
