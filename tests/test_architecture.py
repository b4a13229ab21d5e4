"""The levels and doors of the design, read from the imports of every module."""

from __future__ import annotations

import ast
import statistics
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parent.parent / "adapterhub"

# A room imports from itself and from the lines above its own.
LEVELS = (
    ("errors",),
    ("digest", "schema", "strictjson"),
    ("tensorfile", "catalogue", "known_bases"),
    ("base", "adapter"),
    ("kernels",),
    ("methods",),
    ("formats", "store"),
    ("registry",),
    ("merging", "composing", "hub"),
    ("runtime",),  # a merge into a model in memory
    ("api",),
    ("cli",),
)
# Modules that belong to a room without lying in it.
ROOM_OF = {"_introspect": "catalogue", "__init__": "api", "__main__": "cli"}

# Where each library may be met. A path that ends in "/" is a whole room.
DOORS = {
    "blake3": ("hub/xet/",),
    "click": ("cli/",),
    "huggingface_hub": ("registry/hubcache.py", "hub/client/"),
    "jsonschema": ("schema.py",),
    "lz4": ("hub/xet/",),
    "matplotlib": ("composing/comparing/plot.py",),
    "peft": ("methods/peft_layer.py", "runtime/prompts.py"),
    "platformdirs": ("store/",),
    "referencing": ("schema.py",),
    "regex": ("methods/patterns.py",),
    "rich": ("cli/",),
    "sqlite_utils": ("store/",),
    "starlette": ("hub/server/",),
    "torch": (
        *("runtime/", "formats/pickles.py", "_introspect/", "methods/peft_layer.py"),
        *("methods/fourierft.py", "methods/projections.py"),
    ),
    "threadpoolctl": ("composing/blas.py",),
    "transformers": ("runtime/", "_introspect/"),
    "uvicorn": ("hub/server/",),
    "yaml": ("formats/card.py", "hub/client/frontmatter.py", "composing/recipe.py"),
}
AT_TOP = ("click", "starlette")  # rooms that nobody enters without needing them
NUMERIC = ("numpy", "ml_dtypes")
NO_NUMERIC_AT_TOP = ("errors", "digest", "cli")


@dataclass(frozen=True)
class Import:
    """`name` is dotted; `when`: "top" (the module's own import), "call", or "types" (never)."""

    name: str
    line: int
    when: str


def room(module: str) -> str:
    """`merging/plan.py` → merging, `base.py` → base."""
    first = module.split("/")[0].removesuffix(".py")
    return ROOM_OF.get(first, first)


def _room_of_import(name: str) -> str:
    """`adapterhub.merging.plan` → merging; the package itself → api."""
    return room([*name.split("."), "__init__"][1])


def level(name: str) -> int | None:
    return next((i for i, rooms in enumerate(LEVELS) if name in rooms), None)


@cache
def imports(source: str, modules: frozenset[str]) -> tuple[Import, ...]:
    return tuple(_imports(source, modules))


def _imports(source: str, modules: frozenset[str]) -> Iterator[Import]:
    """Every import; names in full, as far as `modules` (`adapterhub.merging.plan` …) know them."""
    for node, when in _nodes(ast.parse(source), "top"):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield Import(alias.name, node.lineno, when)
        elif isinstance(node, ast.ImportFrom):
            stem = "." * node.level + (node.module or "")
            for alias in node.names:
                full = f"{stem}.{alias.name}"
                yield Import(full if full in modules else stem, node.lineno, when)


def _nodes(node: ast.AST, when: str) -> Iterator[tuple[ast.AST, str]]:
    for child in ast.iter_child_nodes(node):
        inside = when
        if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            inside = "call"
        elif isinstance(child, ast.If) and "TYPE_CHECKING" in ast.dump(child.test):
            inside = "types"
        yield child, inside
        yield from _nodes(child, inside)


def violations(module: str, source: str, modules: frozenset[str]) -> list[str]:
    """What `module` (its path in the package) imports against the tables above, as sentences."""
    found = []
    for item in imports(source, modules):
        why = _inner(module, item) if _is_own(item) else _outer(module, item)
        found += [f"{module}:{item.line}: {why}"] if why else []
    return found


def _is_own(item: Import) -> bool:
    return item.name.split(".")[0] in ("adapterhub", "")


def _inner(module: str, item: Import) -> str:
    if item.name.startswith("."):
        return f"{item.name} is a relative import"
    here, there = room(module), _room_of_import(item.name)
    own, other = level(here), level(there)
    if own is None or other is None:
        return f"{here} or {there} stands on no level"
    if here == there or other < own:
        return ""
    return f"{here} imports {there}, which is not above it"


def _outer(module: str, item: Import) -> str:
    name = item.name.split(".")[0]
    if name in sys.stdlib_module_names or item.when == "types":
        return ""
    top = f"{name} at the top" if item.when == "top" else ""
    if name in NUMERIC:
        return top if room(module) in NO_NUMERIC_AT_TOP else ""
    doors = DOORS.get(name, ())
    if not any(module.startswith(d) if d.endswith("/") else module == d for d in doors):
        return f"{name} is not met here"
    return "" if name in AT_TOP else top


# --- the package ------------------------------------------------------------------------------


def _files() -> list[str]:
    return sorted(path.relative_to(PACKAGE).as_posix() for path in PACKAGE.rglob("*.py"))


def _dotted(module: str) -> str:
    return ".".join(["adapterhub", *module.removesuffix(".py").split("/")]).removesuffix(
        ".__init__"
    )


MODULES = frozenset(_dotted(module) for module in _files())


@cache
def _nodes_of(module: str) -> tuple[list[int], list[int]]:
    """The lines of its asserts, and the lengths of its functions in lines."""
    asserts, lengths = [], []
    for node in ast.walk(ast.parse((PACKAGE / module).read_text("utf-8"))):
        if isinstance(node, ast.Assert):
            asserts.append(node.lineno)
        elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            lengths.append((node.end_lineno or 0) - node.lineno + 1)
    return asserts, lengths


def test_every_import_keeps_to_levels_and_doors() -> None:
    found = [
        line
        for module in _files()
        for line in violations(module, (PACKAGE / module).read_text("utf-8"), MODULES)
    ]
    assert found == []


def test_every_row_of_the_tables_is_in_use() -> None:
    rooms = {room(module) for module in _files()}
    assert {name for names in LEVELS for name in names} == rooms
    for name, doors in DOORS.items():
        for door in doors:
            files = [m for m in _files() if m.startswith(door)]
            sources = ((PACKAGE / m).read_text("utf-8") for m in files)
            met = [i for source in sources for i in imports(source, MODULES)]
            assert any(i.name.split(".")[0] == name for i in met), f"{name} is not met in {door}"


def test_no_module_asserts() -> None:
    assert [f"{module}:{line}" for module in _files() for line in _nodes_of(module)[0]] == []


def test_files_and_functions_are_short() -> None:
    long = {m: n for m in _files() if (n := len((PACKAGE / m).read_text().splitlines())) > 400}
    lengths = [length for module in _files() for length in _nodes_of(module)[1]]
    assert long == {}
    assert statistics.median(lengths) <= 14


# --- the checker itself -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("module", "source", "said"),
    [
        ("base.py", "from adapterhub.adapter import Adapter", "base imports adapter"),
        ("base.py", "from adapterhub import adapter", "base imports adapter"),
        ("adapter.py", "import adapterhub.base", "adapter imports base"),
        ("digest.py", "from adapterhub.schema import check", "digest imports schema"),
        ("kernels/x.py", "from adapterhub import methods", "kernels imports methods"),
        (
            "store/x.py",
            "def f():\n    from adapterhub.formats import peft",
            "store imports formats",
        ),
        ("merging/x.py", "if a:\n    from adapterhub.runtime import b", "merging imports runtime"),
        ("registry/x.py", "from adapterhub.merging import plan", "registry imports merging"),
        ("errors.py", "from adapterhub import digest", "errors imports digest"),
        ("api.py", "from adapterhub.cli import main", "api imports cli"),
        ("merging/x.py", "from adapterhub import open", "merging imports api"),
        ("merging/x.py", "from . import plan", ". is a relative import"),
        ("strange.py", "from adapterhub import errors", "stands on no level"),
        ("merging/x.py", "def f():\n    import torch", "torch is not met here"),
        ("merging/x.py", "import click", "click is not met here"),
        ("formats/peft.py", "def f():\n    import yaml", "yaml is not met here"),
        ("hub.py", "def f():\n    import requests", "requests is not met here"),
        ("runtime/x.py", "import torch.nn as nn", "torch at the top"),
        ("runtime/x.py", "class A:\n    from torch import nn", "torch at the top"),
        ("runtime/x.py", "try:\n    import transformers\nexcept ImportError: ...", "at the top"),
        ("digest.py", "import numpy", "numpy at the top"),
        ("base.py", "if TYPE_CHECKING:\n    import adapterhub.adapter", "base imports adapter"),
    ],
)
def test_the_checker_sees(module: str, source: str, said: str) -> None:
    (sentence,) = violations(module, source, MODULES)
    assert said in sentence
    assert sentence.startswith(f"{module}:")


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("merging/plan.py", "import json, numpy\nfrom adapterhub.registry import fit"),
        ("merging/plan.py", "from adapterhub.merging.engine import run"),
        ("runtime/x.py", "def f():\n    import torch"),
        ("api.py", "if typing.TYPE_CHECKING:\n    import torch"),
        ("formats/pickles.py", "async def f():\n    from torch import nn"),
        ("cli/x.py", "import click\nimport adapterhub\nfrom adapterhub import api"),
        ("__main__.py", "from adapterhub.cli import main"),
        ("catalogue.py", "from adapterhub._introspect import describe"),
    ],
)
def test_the_checker_lets_pass(module: str, source: str) -> None:
    assert violations(module, source, MODULES) == []
