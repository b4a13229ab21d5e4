"""Patterns that strangers wrote, matched with limits: keys of `rank_pattern`, `target_modules` …

A key of `rank_pattern` or `alpha_pattern` is a regular expression; the first KEY wins for which
`(.*\\.)?(KEY)$` matches the module path (`peft.utils.other.get_pattern_key`). A string in
`target_modules` has to match the whole path (`match_target_against_key`).

A match has a time limit, and so have all matches of one config together. A pattern that is quick
on the modules at hand may take for ever on others, where peft runs it: those that can are refused.
"""

from __future__ import annotations

import re
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from adapterhub.errors import InvalidAdapter
from adapterhub.methods.explosive import is_explosive

if TYPE_CHECKING:
    from regex import Pattern

MATCH_SECONDS = 0.1
TOTAL_SECONDS = 0.6
MAX_CHARS = 1000
MAX_WHOLE_CHARS = 20_000  # some list every module, with | between them
KEYS = "rank_pattern and alpha_pattern"
_PLAIN = re.compile(r"[\w.\-]*", re.ASCII)
_WHOLE = re.compile(r"\^((?:\w|\\[.\-])+)", re.ASCII)  # one path and no other
# `{e<2}` asks the regex library for approximate matches; to Python it is plain text.
_FUZZY = re.compile(r"\{(?!\d*(,\d*)?\})")


class Clock:
    """What matching has cost so far, in seconds of this thread's own time."""

    def __init__(self) -> None:
        self.spent = 0.0

    def __enter__(self) -> Clock:
        self._started = time.thread_time() - self.spent
        return self

    def __exit__(self, *_: object) -> None:
        self.spent = time.thread_time() - self._started

    def check(self, pattern: str) -> None:
        """Raises InvalidAdapter once all patterns of a config have taken too long."""
        if time.thread_time() - self._started > TOTAL_SECONDS:
            raise _refusal(pattern, "all patterns together take too long to match")


class Patterns:
    """`values` by key, in the order of the config."""

    def __init__(
        self, values: Mapping[str, Any], *, field: str = KEYS, clock: Clock | None = None
    ) -> None:
        self.values = values
        self._values = list(values.values())
        self._field = field
        self._places = {path: n for n, key in enumerate(values) if (path := _path(key))}
        self._others = [(n, key, _ending(key)) for n, key in enumerate(values) if not _path(key)]
        self._compiled: dict[str, Pattern[str]] = {}
        self._clock = clock or Clock()

    def find(self, module: str) -> Any | None:
        """The value of the first key that matches, or None. Raises InvalidAdapter."""
        return next(self._found(module), None)

    def is_ambiguous(self, module: str) -> bool:
        """Whether another order of the keys would give another value. Raises InvalidAdapter."""
        return len(set(self._found(module))) > 1

    def check(self, modules: Sequence[str]) -> None:
        """Raises InvalidAdapter for the first key that cannot be used, on these modules or ever."""
        with self._clock as clock:
            for _, key, _ in self._others:
                if not _PLAIN.fullmatch(key):
                    clock.check(key)
                    self._pattern(key)
        for module in modules:
            list(self._found(module))

    def _found(self, module: str) -> Iterator[Any]:
        with self._clock as clock:
            own = self._places.get(module)
            for place, key, ending in self._others:
                if own is not None and own < place:
                    yield self._values[own]
                    own = None
                if not module.endswith(ending):
                    continue
                clock.check(key)
                if self._matches(key, module):
                    yield self._values[place]
            if own is not None:
                yield self._values[own]

    def _matches(self, key: str, module: str) -> bool:
        if _PLAIN.fullmatch(key):
            return _matches_plain(key, module)
        try:
            return self._pattern(key).match(module, timeout=MATCH_SECONDS) is not None
        except (TimeoutError, MemoryError):
            raise _refusal(key, "it takes too long to match", self._field) from None

    def _pattern(self, key: str) -> Pattern[str]:
        if key not in self._compiled:
            self._compiled[key] = _compile(_whole_key(key), key, MAX_CHARS, self._field)
        return self._compiled[key]


class WholePattern:
    """A regular expression for whole paths, from the field of a config."""

    def __init__(self, field: str, text: str, clock: Clock) -> None:
        self.field, self.text, self._clock = field, text, clock

    def count(self, modules: Sequence[str]) -> int:
        """How many of `modules` match. Raises InvalidAdapter where the pattern cannot be used."""
        with self._clock as clock:
            pattern = _compile(self.text, self.text, MAX_WHOLE_CHARS, self.field)
            return sum(self._matches(pattern, module, clock) for module in modules)

    def _matches(self, pattern: Pattern[str], module: str, clock: Clock) -> bool:
        clock.check(self.text)
        try:
            return pattern.fullmatch(module, timeout=MATCH_SECONDS) is not None
        except (TimeoutError, MemoryError):
            raise _refusal(self.text, "it takes too long to match", self.field) from None


def _whole_key(key: str) -> str:
    return rf"(.*\.)?({key})$"


def _ending(key: str) -> str:
    """What a module must end with for `key` to match; "" where that is not known at a glance."""
    return key.rpartition(".")[2] if _PLAIN.fullmatch(key) else ""


def _path(key: str) -> str | None:
    """The path, where the key is one and nothing else: thousands of them are looked up at once."""
    found = _WHOLE.fullmatch(key)
    return found[1].replace("\\", "") if found else None


def _matches_plain(key: str, module: str) -> bool:
    """`(.*\\.)?(KEY)$` for a KEY of letters, digits, `_`, `-`, and dots that match anything."""
    start = len(module) - len(key)
    if start < 0 or (start and module[start - 1] != "."):
        return False
    return all(k in (".", m) for k, m in zip(key, module[start:], strict=True))


def _compile(text: str, said: str, limit: int, field: str) -> Pattern[str]:
    """Compiled for the library that can stop; refused where Python would read it otherwise."""
    import regex

    if len(said) > limit:
        raise _refusal(said, f"it has {len(said)} characters, at most {limit} are taken", field)
    if _FUZZY.search(said):
        raise _refusal(said, "a brace in it is no count", field)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            re.compile(text)
            compiled = regex.compile(text, flags=regex.VERSION0)
    except (re.error, regex.error, RecursionError, OverflowError, MemoryError, Warning) as error:
        raise _refusal(said, str(error) or type(error).__name__, field) from None
    if is_explosive(said):
        raise _refusal(said, "it can take too long to match: repeats within repeats", field)
    return compiled


def _refusal(key: str, why: str, field: str = KEYS) -> InvalidAdapter:
    words = "keys are regular expressions" if "_pattern" in field else "it is a regular expression"
    return InvalidAdapter(
        f"pattern {key[:80]!a} of adapter_config.json cannot be used: {why}",
        remedy=f"correct {field}; {words}",
    )
