"""A difference of two versions as rows for people: fields that hold others are taken apart."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from adapterhub.cli.output import cell

if TYPE_CHECKING:
    from adapterhub.registry.diffs import Difference

Brief = Callable[[Any], str | None]
Row = tuple[str, str, str]
_DIGEST = re.compile(r"\b(sha256:[0-9a-f]{12})[0-9a-f]{52}\b")
_MISSING = object()


def rows(
    found: Difference,
    brief: Mapping[str, Brief] | None = None,
    alone: Mapping[str, Brief] | None = None,
) -> list[Row]:
    """(what, left, right): fields, then tensors that one side alone has.

    `brief`: how to say the values of a field in few words, where these differ; `alone`: where one
    side has none.
    """
    from adapterhub.registry.inspection import starred

    listed: list[Row] = []
    for name, both in found.fields.items():
        words = {**(brief or {}), **(alone or {} if None in both else {})}
        listed += _field(name, both, words.get(name))
    listed += [(f"tensor {name}", "there", "–") for name in starred(found.only_left)]
    listed += [(f"tensor {name}", "–", "there") for name in starred(found.only_right)]
    return listed


def _field(name: str, both: tuple[Any, Any], brief: Brief | None) -> Iterator[Row]:
    if brief:
        one, other = (cell(brief(each)) for each in both)
        if one != other:
            yield name, one, other
            return
    yield from _rows(name, *both)


def _rows(name: str, left: Any, right: Any) -> Iterator[Row]:
    """One for each leaf that differs; where one side has none, it is whole."""
    if left == right:
        return
    parts = [_parts(each) for each in (left, right)]
    if None in parts:
        yield name, _said(left), _said(right)
        return
    one, other = (dict(each or {}) for each in parts)
    for key in [*one, *(key for key in other if key not in one)]:
        yield from _rows(f"{name}.{key}", one.get(key, _MISSING), other.get(key, _MISSING))


def _parts(value: Any) -> Mapping[str, Any] | None:
    """Of an object its fields, of a list of objects these by their numbers from 1 on."""
    if isinstance(value, Mapping):
        return value
    if isinstance(value, Sequence) and value and all(isinstance(v, Mapping) for v in value):
        return {str(number): each for number, each in enumerate(value, 1)}
    return None


def _said(value: Any) -> str:
    return "–" if value is _MISSING else _DIGEST.sub(r"\1", cell(value))
