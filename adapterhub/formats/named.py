"""Readings of formats that this version names and does not read."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from adapterhub.adapter import BaseClaim, Outline, Problem, Reading
from adapterhub.formats import card
from adapterhub.formats.contents import Content
from adapterhub.formats.sight import Sight
from adapterhub.tensorfile import Tensor

REMEDY = "convert it to PEFT with the tool that wrote it, and add that"


def reading(
    sight: Sight,
    format: str,
    title: str,
    contents: Sequence[Content],
    outline: Outline,
    *,
    method: str | None,
    config: Mapping[str, Any] | None = None,
    companions: Sequence[str] = (),
    remedy: str = REMEDY,
    why: str = "",
) -> Reading:
    """`title` begins the sentence: "MLX adapters are recognised and not read by this version"."""
    text = f"{title} are recognised and not read by this version{why and ': '}{why}"
    front, card_problems = card.read(sight.directory / "README.md")
    return Reading(
        path=sight.path if sight.file else sight.directory,
        format=format,
        method=method,
        config=config or {},
        adapter=None,
        files=sight.files(contents, *companions),
        problems=(
            Problem("format", text, remedy, fatal=True),
            *damage(sight, contents),
            *card_problems,
        ),
        card=front,
        tensors=merged(contents),
        outline=outline,
    )


def damage(sight: Sight, contents: Iterable[Content]) -> list[Problem]:
    """What is wrong with the config and these weights."""
    found = [sight.config_problem, *(content.problem for content in contents)]
    return [problem for problem in found if problem is not None]


def merged(contents: Iterable[Content]) -> dict[str, Tensor]:
    """The tensors of several files under one roof; the first of a name stands."""
    found: dict[str, Tensor] = {}
    for content in contents:
        for name, tensor in content.tensors.items():
            found.setdefault(name, tensor)
    return found


def ranks(
    contents: Iterable[Content], table: Sequence[tuple[str, int]]
) -> tuple[dict[str, int], tuple[str, ...]]:
    """`(module → rank, modules)`, both from names that end as a row of `table` says.

    A row is the pattern of the suffix after the module, and the axis of the rank. A negative axis
    counts from the end.
    """
    patterns = [(re.compile(rf"(.*?)\.?(?:{suffix})"), axis) for suffix, axis in table]
    found: dict[str, int] = {}
    modules: dict[str, None] = {}
    for content in contents:
        for name, shape in content.shapes.items():
            for pattern, axis in patterns:
                if matched := pattern.fullmatch(name):
                    modules[matched[1]] = None
                    if shape and -len(shape) <= axis < len(shape) and shape[axis] > 0:
                        found.setdefault(matched[1], shape[axis])
                    break
    return found, tuple(modules)


def outline(
    contents: Sequence[Content],
    table: Sequence[tuple[str, int]],
    *,
    alpha: float | None = None,
    base: str | None = None,
) -> Outline:
    by_module, modules = ranks(contents, table)
    return Outline(by_module, modules, alpha, BaseClaim(name=base), elements(contents))


def elements(contents: Iterable[Content]) -> int | None:
    """Of all tensors; None where there are none, or one's shape does not show."""
    shapes = [shape for content in contents for shape in content.shapes.values()]
    known = [shape for shape in shapes if shape is not None]
    return sum(map(math.prod, known)) if known and len(known) == len(shapes) else None


def single(values: Iterable[float]) -> float | None:
    """The value that all of them are, or None."""
    distinct = set(values)
    return distinct.pop() if len(distinct) == 1 else None


def number(value: object) -> float | None:
    """A finite number, or None."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    return float(value) if abs(value) < 1e300 else None


def text(value: object) -> str | None:
    return value if isinstance(value, str) and value else None
