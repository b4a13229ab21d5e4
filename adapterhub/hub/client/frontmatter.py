"""The front matter of a README.md, extended as text: what people wrote stays byte for byte.

A key whose value is null, "" or an empty list or mapping says nothing, and is filled in its place;
keys that are not there come after the last one; a list gets further items behind its last. The
result is parsed again, and given up unless it says what it said before and what was added.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from adapterhub.formats import card as limits

if TYPE_CHECKING:
    import yaml

_OPEN = re.compile(r"\s*---[ \t]*\r?\n")  # the Hub's clients skip white space before it, too
_CLOSE = re.compile(r"^---[ \t]*\r?$", re.MULTILINE)
_LIST = "tag:yaml.org,2002:seq"
_WIDE = 2**31


class FrontMatterError(ValueError):
    """What keeps the front matter from being read or extended; the text completes a sentence."""


@dataclass(frozen=True)
class Document:
    """A README.md in three parts: `head + front + tail` is its text.

    Without front matter `head` and `front` are empty. `head` ends behind the first fence, `tail`
    begins with the second.
    """

    head: str
    front: str
    tail: str

    @property
    def fenced(self) -> bool:
        return bool(self.head)

    @property
    def newline(self) -> str:
        return "\r\n" if "\r\n" in (self.head or self.tail[:1000]) else "\n"

    @property
    def text(self) -> str:
        return self.head + self.front + self.tail


@dataclass(frozen=True)
class _Parsed:
    """`spans`: key → where its value stands in the front matter. `root`: the mapping's own span.

    `lists`: key → where its last item ends, and the column of its dashes, or None within brackets.
    """

    values: Mapping[Any, Any] = field(default_factory=dict)
    spans: Mapping[str, tuple[int, int]] = field(default_factory=dict)
    lists: Mapping[str, tuple[int, int | None]] = field(default_factory=dict)
    root: tuple[int, int] | None = None
    flow: bool = False
    indent: int = 0


def split(text: str) -> Document:
    """Raises FrontMatterError where the first fence has no second."""
    opened = _OPEN.match(text)
    if opened is None:
        return Document("", "", text)
    closed = _CLOSE.search(text, opened.end())
    if closed is None:
        raise FrontMatterError("has no end")
    return Document(
        text[: opened.end()], text[opened.end() : closed.start()], text[closed.start() :]
    )


def values(front: str) -> dict[str, Any]:
    """The keys that are texts. Raises FrontMatterError, within the limits of `formats.card`."""
    return {key: value for key, value in _parse(front).values.items() if isinstance(key, str)}


def says(value: Any) -> bool:
    return value is not None and value != "" and value != [] and value != {}


def dump(fields: Mapping[str, Any], newline: str = "\n") -> str:
    """Block YAML, in the order given; each line ends with `newline`."""
    if not fields:
        return ""
    import yaml

    text: str = yaml.safe_dump(
        dict(fields), sort_keys=False, allow_unicode=True, default_flow_style=False, width=_WIDE
    )
    return text.replace("\n", newline)


def extended(
    document: Document,
    additions: Mapping[str, Any],
    items: Mapping[str, Sequence[Any]] = MappingProxyType({}),
) -> Document:
    """With `additions` as values of their keys, and with `items` behind those of lists.

    Additions replace: give only what `document` says nothing of, or what was never people's.
    `items` are for lists that are there and not empty. Raises FrontMatterError.
    """
    if not additions and not any(items.values()):
        return document
    if not document.fenced:
        line = document.newline
        front = dump(additions, line)
        gap = line if document.tail.strip() else ""
        return Document(f"---{line}", front, f"---{line}{gap}{document.tail}")
    before = _parse(document.front)
    front = _edited(document.front, before, additions, items, document.newline)
    longer = {key: [*before.values[key], *more] for key, more in items.items()}
    expected = {**before.values, **additions, **longer}
    try:
        found = _parse(front).values
    except FrontMatterError:
        found = {}
    # By repr, since NaN differs from itself, and True and 1 do not differ.
    if {k: repr(v) for k, v in found.items()} != {k: repr(v) for k, v in expected.items()}:
        raise FrontMatterError("is written in a way that cannot be extended without rewriting it")
    return Document(document.head, front, document.tail)


# --- the text ---------------------------------------------------------------------------------


def _edited(
    front: str,
    parsed: _Parsed,
    additions: Mapping[str, Any],
    items: Mapping[str, Sequence[Any]],
    newline: str,
) -> str:
    # (start, end, text), none of which overlap
    edits = [_appended(front, parsed, key, more, newline) for key, more in items.items() if more]
    new = {key: value for key, value in additions.items() if key not in parsed.spans}
    for key in additions.keys() - new.keys():
        start, end = parsed.spans[key]
        gap = " " if start and front[start - 1] in ":," else ""
        edits.append((start, end, gap + _flow(additions[key])))
    if new:
        edits.append(_insertion(front, parsed, new, newline))
    for start, end, text in sorted(edits, reverse=True):
        front = front[:start] + text + front[end:]
    return front


def _appended(
    front: str, parsed: _Parsed, key: str, more: Sequence[Any], newline: str
) -> tuple[int, int, str]:
    """Raises FrontMatterError where the value of `key` is no list with items."""
    if key not in parsed.lists:
        raise FrontMatterError(f"has no list at {key}")
    end, column = parsed.lists[key]
    if column is None:
        return end, end, "".join(f", {_flow(item)}" for item in more)
    line_end = front.find("\n", end - 1)  # a folded text has its line's end inside
    at = len(front) if line_end < 0 else line_end + 1
    before = "" if line_end >= 0 else newline
    return at, at, before + "".join(f"{' ' * column}- {_flow(item)}{newline}" for item in more)


def _insertion(
    front: str, parsed: _Parsed, new: Mapping[str, Any], newline: str
) -> tuple[int, int, str]:
    if parsed.root is None or (parsed.flow and not parsed.values):
        start, end = parsed.root or (len(front), len(front))
        text = dump(new, newline)
        if parsed.root is not None:
            return start, end, text.rstrip("\r\n")
        return start, end, _line_end(front, newline) + text
    if parsed.flow:
        start = parsed.root[0] + 1
        pairs = ", ".join(f"{key}: {_flow(value)}" for key, value in new.items())
        return start, start, f"{pairs}, "
    lines = dump(new, newline).splitlines(keepends=True)
    text = "".join(" " * parsed.indent + line for line in lines)
    return len(front), len(front), _line_end(front, newline) + text


def _line_end(front: str, newline: str) -> str:
    return newline if front and not front.endswith("\n") else ""


def _flow(value: Any) -> str:
    """One line of YAML that may stand inside brackets."""
    import yaml

    text: str = yaml.safe_dump([value], allow_unicode=True, default_flow_style=True, width=_WIDE)
    return text.strip()[1:-1]


# --- reading ----------------------------------------------------------------------------------


def _parse(front: str) -> _Parsed:
    import yaml

    if len(front) > limits.FRONT_LIMIT:
        raise FrontMatterError("is larger than 64 KiB")
    try:
        if why := limits.trick(front):
            raise FrontMatterError(why)
        node = yaml.compose(front, yaml.SafeLoader)
        loaded = yaml.safe_load(front)
    except FrontMatterError:
        raise
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        first = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise FrontMatterError(f"is not valid YAML: {first}") from error
    if node is None:
        return _Parsed()
    if not isinstance(node, yaml.MappingNode):
        raise FrontMatterError("is no mapping of keys to values")
    return _mapping(node, loaded)


def _mapping(node: yaml.MappingNode, loaded: dict[Any, Any]) -> _Parsed:
    spans: dict[str, tuple[int, int]] = {}
    lists: dict[str, tuple[int, int | None]] = {}
    seen = set()
    for key, value in node.value:
        if key.value in seen:
            raise FrontMatterError(f"has the key {str(key.value)[:80]!a} twice")
        seen.add(str(key.value))
        spans[str(key.value)] = (value.start_mark.index, value.end_mark.index)
        if isinstance(value.value, list) and value.tag == _LIST and value.value:
            column = None if value.flow_style else value.start_mark.column
            lists[str(key.value)] = (value.value[-1].end_mark.index, column)
    return _Parsed(
        loaded,
        spans,
        lists,
        (node.start_mark.index, node.end_mark.index),
        bool(node.flow_style),
        node.start_mark.column,
    )
