"""What a method can be told, and what it takes."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from adapterhub.errors import InvalidOption


@dataclass(frozen=True)
class Parameter:
    """A number, or one of `choices`, or a switch. `above`: excludes `low` itself."""

    name: str
    default: float | int | str | bool | None
    help: str
    low: float | None = None
    high: float | None = None
    above: bool = False
    choices: tuple[str, ...] = ()

    def check(self, value: Any) -> Any:
        """The value, of the default's type. Raises InvalidOption."""
        if self.choices:
            ok = value in self.choices
        elif isinstance(self.default, bool):
            ok = isinstance(value, bool)
        else:
            ok = isinstance(value, int | float) and not isinstance(value, bool)
            ok = ok and self._is_within(value)
        if not ok:
            raise InvalidOption(f"{self.name} is {value!r}", remedy=f"{self.name}: {self.range}")
        return value if isinstance(value, str | bool) else type(self.default or 0.0)(value)

    def _is_within(self, value: float) -> bool:
        try:
            if not math.isfinite(value):
                return False
        except OverflowError:  # an integer that no float can hold
            return False
        above = self.low is None or (value > self.low if self.above else value >= self.low)
        return above and (self.high is None or value <= self.high)

    @property
    def range(self) -> str:
        if self.choices:
            return "one of " + ", ".join(self.choices)
        if isinstance(self.default, bool):
            return "true or false"
        low = "" if self.low is None else f"{'above' if self.above else 'at least'} {self.low:g}"
        high = "" if self.high is None else f"at most {self.high:g}"
        return " and ".join(filter(None, (low, high))) or "a finite number"
