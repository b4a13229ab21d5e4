"""Values by pattern, as PEFT's `rank_pattern` and `alpha_pattern` spell them.

A key is a regular expression; the first KEY wins for which `(.*\\.)?(KEY)$` matches the module
path (`peft.utils.other.get_pattern_key`). The keys come from strangers, so a match has a time
limit, and so have all matches of one config together.
"""

from __future__ import annotations

import re
import time
import warnings
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from adapterhub.errors import InvalidAdapter

if TYPE_CHECKING:
    from regex import Pattern

MATCH_SECONDS = 0.1
TOTAL_SECONDS = 5.0
MAX_CHARS = 1000
_PLAIN = re.compile(r"[\w.\-]*", re.ASCII)
# `{e<2}` asks the regex library for approximate matches; to Python it is plain text.
_FUZZY = re.compile(r"\{(?!\d*(,\d*)?\})")


class Patterns:
    """`values` by key, in the order of the config."""

    def __init__(self, values: Mapping[str, Any]) -> None:
        self.values = values
        self._endings = {key: _ending(key) for key in values}
        self._compiled: dict[str, Pattern[str]] = {}
        self._seconds = 0.0  # spent on matching, of this thread's own time

    def find(self, module: str) -> Any | None:
        """The value of the first key that matches, or None. Raises InvalidAdapter."""
        return next(self._found(module), None)

    def is_ambiguous(self, module: str) -> bool:
        """Whether another order of the keys would give another value. Raises InvalidAdapter."""
        return len(set(self._found(module))) > 1

    def _found(self, module: str) -> Iterator[Any]:
        started = time.thread_time() - self._seconds
        try:
            for key, value in self.values.items():
                if not module.endswith(self._endings[key]):
                    continue
                if time.thread_time() - started > TOTAL_SECONDS:
                    raise _refusal(key, "all patterns together take too long to match")
                if self._matches(key, module):
                    yield value
        finally:
            self._seconds = time.thread_time() - started

    def _matches(self, key: str, module: str) -> bool:
        if _PLAIN.fullmatch(key):
            return _matches_plain(key, module)
        if key not in self._compiled:
            self._compiled[key] = _compile(key)
        try:
            return self._compiled[key].match(module, timeout=MATCH_SECONDS) is not None
        except (TimeoutError, MemoryError):
            raise _refusal(key, "it takes too long to match") from None


def _ending(key: str) -> str:
    """What a module must end with for `key` to match; "" where that is not known at a glance."""
    return key.rpartition(".")[2] if _PLAIN.fullmatch(key) else ""


def _matches_plain(key: str, module: str) -> bool:
    """`(.*\\.)?(KEY)$` for a KEY of letters, digits, `_`, `-`, and dots that match anything."""
    start = len(module) - len(key)
    if start < 0 or (start and module[start - 1] != "."):
        return False
    return all(k in (".", m) for k, m in zip(key, module[start:], strict=True))


def _compile(key: str) -> Pattern[str]:
    """Compiled for the library that can stop; refused where Python would read it otherwise."""
    import regex

    if len(key) > MAX_CHARS:
        raise _refusal(key, f"it has {len(key)} characters, at most {MAX_CHARS} are taken")
    if _FUZZY.search(key):
        raise _refusal(key, "a brace in it is no count")
    text = rf"(.*\.)?({key})$"
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            re.compile(text)
            return regex.compile(text, flags=regex.VERSION0)
    except (re.error, regex.error, RecursionError, OverflowError, MemoryError, Warning) as error:
        raise _refusal(key, str(error) or type(error).__name__) from None


def _refusal(key: str, why: str) -> InvalidAdapter:
    return InvalidAdapter(
        f"pattern {key[:80]!a} of adapter_config.json cannot be used: {why}",
        remedy="correct rank_pattern and alpha_pattern; keys are regular expressions",
    )
