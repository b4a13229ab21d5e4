"""Regular expressions whose matching can take time that doubles with each character.

What is slow is a repeat within a repeat, `(a+)+`, and a choice within one, `(a|a)*`, where the same
text can be read in many ways. Read from the pattern's own tree: trying it would be to light it.
What is left are patterns whose time grows with a power of the text's length; those have a limit.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterator, Sequence
from typing import Any

_FEW = 4  # repeats of a repeat without an end that are let pass, as (.*\.){2}
_MANY = 10  # … and of one with an end
_REPEATS = ("MAX_REPEAT", "MIN_REPEAT", "POSSESSIVE_REPEAT")
_UNBOUNDED = 1 << 30
Node = tuple[Any, Any]


def is_explosive(pattern: str) -> bool:
    """Whether the pattern has such a repeat. `pattern` must be one that `re` compiles.

    True also for what is nested so deeply that it cannot be told.
    """
    try:
        return _explodes(importlib.import_module("re._parser").parse(pattern))
    except RecursionError:
        return True


def _explodes(nodes: Sequence[Node]) -> bool:
    return any(_bad_repeat(node) for node in nodes) or any(
        _explodes(inner) for node in nodes for inner in _inside(node)
    )


def _inside(node: Node) -> Iterator[Sequence[Node]]:
    """The sequences that a node holds."""
    name, value = str(node[0]), node[1]
    if name in _REPEATS:
        yield value[2]
    elif name == "SUBPATTERN":
        yield value[3]
    elif name == "BRANCH":
        yield from value[1]
    elif name in ("ASSERT", "ASSERT_NOT"):
        yield value[1]
    elif name == "ATOMIC_GROUP":
        yield value
    elif name == "GROUPREF_EXISTS":
        yield value[1]
        yield value[2] or ()


def _all(nodes: Sequence[Node]) -> Iterator[Node]:
    for node in nodes:
        yield node
        for inner in _inside(node):
            yield from _all(inner)


def _bad_repeat(node: Node) -> bool:
    if str(node[0]) not in _REPEATS:
        return False
    most, body = int(node[1][1]), node[1][2]
    inner = [n[1] for n in _all(body) if str(n[0]) in _REPEATS and int(n[1][1]) > int(n[1][0])]
    endless = [n for n in inner if int(n[1]) >= _UNBOUNDED]
    if (endless and most >= _FEW) or (inner and most >= _MANY):
        return not _separated(body, [n[2] for n in inner])
    branches = [n[1][1] for n in _all(body) if str(n[0]) == "BRANCH"]
    return most >= _MANY and any(_overlap(choices) for choices in branches)


def _separated(body: Sequence[Node], repeated: Sequence[Sequence[Node]]) -> bool:
    """Whether each round ends, or starts, with a character that nothing repeated in it takes."""
    nodes = list(body)
    while len(nodes) == 1 and str(nodes[0][0]) == "SUBPATTERN":
        nodes = list(nodes[0][1][3])
    ends = [nodes[0], nodes[-1]] if nodes else []
    marks = [int(node[1]) for node in ends if str(node[0]) == "LITERAL"]
    return any(not any(_takes(n, mark) for seq in repeated for n in _all(seq)) for mark in marks)


def _overlap(choices: Sequence[Sequence[Node]]) -> bool:
    """Whether two of the choices may start alike; those that start with no letter count as such."""
    firsts = [choice[0] if len(choice) else None for choice in choices]
    letters = [node[1] for node in firsts if node is not None and str(node[0]) == "LITERAL"]
    return len(letters) < len(firsts) or len(set(letters)) < len(letters)


def _takes(node: Node, code: int) -> bool:
    """Whether a node that stands for one character may be the one of this code."""
    name, value = str(node[0]), node[1]
    if name == "LITERAL":
        return bool(value == code)
    if name == "NOT_LITERAL":
        return bool(value != code)
    if name == "IN":
        found = any(_takes(part, code) for part in value if str(part[0]) != "NEGATE")
        return found != any(str(part[0]) == "NEGATE" for part in value)
    if name == "RANGE":
        return bool(value[0] <= code <= value[1])
    if name == "CATEGORY":
        return _is_of(str(value), chr(code))
    return name in ("ANY", "GROUPREF")  # others are made of what `_all` yields as well


def _is_of(category: str, character: str) -> bool:
    kinds = {
        "DIGIT": character.isdigit(),
        "SPACE": character.isspace(),
        "WORD": character.isalnum() or character == "_",
    }
    kind = category.rpartition("_")[2]
    return kind not in kinds or kinds[kind] != ("_NOT_" in category)
