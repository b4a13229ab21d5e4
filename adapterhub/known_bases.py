"""Base models that adapters are made for: what they are called, and the shapes of their modules.

The data is in `registry/bases/<family>.json` (schema `schemas/known_base.json`): figures that
people looked up, each with its source, and beside them what transformers makes of these figures,
written by `tools/make_bases.py`. Nothing here asks the network or imports transformers.

A path is compared by its tail: what is left when words that only some classes put first are taken
away. `bert.encoder.layer.0.output.dense` and `encoder.layer.0.output.dense` have one tail,
`encoder.layer.*.output.dense`, and a `language_model.` before it is one more such word.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cache, cached_property
from pathlib import Path
from types import MappingProxyType
from typing import Any

from adapterhub.errors import StoreError
from adapterhub.schema import data_dir

Size = tuple[int | None, int | None]  # (out, in); of an embedding (vocabulary, dim)
Shape = tuple[int | None, ...]
Axes = tuple[frozenset[int], ...]

# Words before a path that say nothing, and those of a model that has another one inside.
NEUTRAL = frozenset({"model", "base_model", "module", "_orig_mod", "auto_model"})
OUTER = frozenset({"language_model", "llm", "backbone", "text_model", "thinker"})
# What classes of the catalogue put before the bare model's names (a test compares).
PREFIXES = frozenset(
    {"albert", "bert", "deberta", "distilbert", "electra", "esm", "gpt_neox", "roberta"}
    | {"transformer", "vit", "wav2vec2"}
)
_FIRST = NEUTRAL | OUTER | PREFIXES
_NUMBER = re.compile(r"[0-9]{1,6}")
_MOST_NUMBERS = 6
_SNAPSHOT = re.compile(r"models--([^/]+)--([^/]+)")


@dataclass(frozen=True)
class Facts:
    """Figures under one set of names; None where a model has none, or nothing tells it."""

    layers: int | None = None
    decoder_layers: int | None = None
    width: int | None = None
    heads: int | None = None
    kv_heads: int | None = None
    head_size: int | None = None
    intermediate: int | None = None
    vocabulary: int | None = None
    tied: bool | None = None


@dataclass(frozen=True)
class Row:
    """Modules that differ in their numbers only.

    `axes`: for each `*` of the tail the numbers that occur, in all combinations; or `listed`, the
    combinations themselves. `sizes`: those that a change of the weight may have, as the method
    sees it, two for a parameter of experts, which is stored either way round; empty where there
    is no such weight. `tensors`: name → shape as stored.
    """

    axes: Axes
    sizes: tuple[Size, ...]
    tensors: Mapping[str, Shape]
    listed: frozenset[tuple[int, ...]] | None = None

    def has(self, numbers: tuple[int, ...]) -> bool:
        if self.listed is not None:
            return numbers in self.listed
        return all(number in axis for number, axis in zip(numbers, self.axes, strict=True))

    @property
    def layers(self) -> Iterable[int]:
        """The numbers in the first place."""
        if self.listed is not None:
            return {numbers[0] for numbers in self.listed}
        return self.axes[0]


@dataclass(frozen=True)
class Structure:
    """`rows`: tail, with `*` for every number → what is there. `words`: what may stand before."""

    rows: Mapping[str, tuple[Row, ...]]
    words: frozenset[str]
    facts: Facts


@dataclass(frozen=True)
class Variant:
    """Other weights of the same configuration."""

    name: str
    aliases: tuple[str, ...] = ()


@dataclass(frozen=True)
class KnownBase:
    """`part` says what the figures are of, where that is not the whole model."""

    name: str
    aliases: tuple[str, ...]
    variants: tuple[Variant, ...]
    licence: str | None
    part: str | None
    model_type: str
    facts: Facts
    parameters: int | None
    derived: Mapping[str, Any]

    @property
    def names(self) -> Iterator[str]:
        """Everything that it is called, variants included."""
        yield from (self.name, *self.aliases)
        for variant in self.variants:
            yield from (variant.name, *variant.aliases)

    @cached_property
    def structure(self) -> Structure:
        prefixes = {word for prefix in self.derived["prefixes"] for word in prefix.split(".")}
        entries = [*self.derived["modules"], *self.derived.get("live", ())]
        rows = (_entry(entry) for entry in entries)
        return structure(rows, frozenset(prefixes), self.facts)


# --- paths ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class ModulePath:
    """A module path taken apart: `words` come before `tail`, in which each number is `*`."""

    words: frozenset[str]
    tail: str
    numbers: tuple[int, ...]


def parsed(path: str) -> ModulePath | None:
    """None for a path that no model has: one with `*`, or with more numbers than any."""
    parts = path.split(".")
    if parts[:2] == ["0", "auto_model"]:  # sentence-transformers
        parts = parts[2:]
    start = 0
    while start < len(parts) - 1 and parts[start] in _FIRST:
        start += 1
    numbers = tuple(int(part) for part in parts[start:] if _NUMBER.fullmatch(part))
    if len(numbers) > _MOST_NUMBERS or "*" in parts:
        return None
    tail = ".".join("*" if _NUMBER.fullmatch(part) else part for part in parts[start:])
    return ModulePath(frozenset(parts[:start]), tail, numbers)


def structure(
    rows: Iterable[tuple[ModulePath, Row]], prefixes: frozenset[str], facts: Facts
) -> Structure:
    """From single rows; a parameter beside weight and bias is found by its own path, too."""
    found: dict[str, list[Row]] = {}
    words = set(prefixes)
    for path, row in rows:
        words |= path.words
        found.setdefault(path.tail, []).append(row)
        for name, shape in row.tensors.items():
            if len(shape) > 1 and name not in ("weight", "in_proj_weight"):
                own = replace(row, sizes=_turned(shape), tensors={})
                found.setdefault(f"{path.tail}.{name}", []).append(own)
    return Structure({tail: tuple(own) for tail, own in found.items()}, frozenset(words), facts)


def _turned(shape: Shape) -> tuple[Size, ...]:
    sizes = (shape[-2], shape[-1]), (shape[-1], shape[-2])
    return sizes if len(shape) == 3 else sizes[:1]


def sizes(kind: str, tensors: Mapping[str, Shape]) -> tuple[Size, ...]:
    """(out, in) of a module's weight; of a Conv1D, which is stored (in, out), turned round."""
    shape = tensors.get("weight", tensors.get("in_proj_weight", ()))
    if not shape:
        return ()
    if len(shape) == 1:
        return ((shape[0], shape[0]),)
    return ((shape[1], shape[0]) if kind == "Conv1D" else (shape[0], shape[1]),)


# --- the files --------------------------------------------------------------------------------


@cache
def known() -> tuple[KnownBase, ...]:
    """All of them, family by family. Raises StoreError for a damaged installation."""
    folder = data_dir("registry") / "bases"
    return tuple(base for path in sorted(folder.glob("*.json")) for base in _family(path))


def _family(path: Path) -> Iterator[KnownBase]:
    try:
        document = json.loads(path.read_text("utf-8"))
        for base in document["bases"]:
            yield _base(base, document["derived"][base["name"]])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise StoreError(
            f"the catalogue's entry {path} cannot be read: {error}", remedy="reinstall adapterhub"
        ) from error


def _base(base: Mapping[str, Any], derived: Mapping[str, Any]) -> KnownBase:
    variants = base.get("variants", ())
    return KnownBase(
        name=base["name"],
        aliases=tuple(base.get("aliases", ())),
        variants=tuple(Variant(v["name"], tuple(v.get("aliases", ()))) for v in variants),
        licence=base.get("licence"),
        part=base.get("part"),
        model_type=base["config"]["model_type"],
        facts=Facts(**derived["facts"]),
        parameters=derived["parameters"],
        derived=MappingProxyType(derived),
    )


def _entry(entry: Mapping[str, Any]) -> tuple[ModulePath, Row]:
    path, written = _pattern(entry["path"])
    several = iter(entry.get("at", ()))
    axes = tuple(_numbers(next(several) if axis is None else axis) for axis in written)
    tensors = {name: tuple(shape) for name, shape in entry["tensors"].items()}
    return path, Row(axes, sizes(entry["kind"], tensors), tensors)


@cache
def _pattern(text: str) -> tuple[ModulePath, tuple[str | None, ...]]:
    """The path, and for each of its numbers what it is where it is written out; None for `*`."""
    parts = text.split(".")
    path = parsed(".".join("0" if part == "*" else part for part in parts))
    if path is None:
        raise ValueError(f"{text} has too many numbers")
    numbers = [part for part in parts if part == "*" or _NUMBER.fullmatch(part)]
    return path, tuple(None if part == "*" else part for part in numbers)


@cache
def _numbers(text: str) -> frozenset[int]:
    """ "0-2,5" → 0, 1, 2, 5."""
    found: set[int] = set()
    for run in text.split(","):
        first, _, last = run.partition("-")
        found |= set(range(int(first), int(last or first) + 1))
    return frozenset(found)


@cache
def model_types() -> Mapping[str, str]:
    """The model type of every base, by its name."""
    return {base.name: base.model_type for base in known()}


# --- names ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Named:
    """`variant` is the name of other weights of the base's configuration, where it means those."""

    base: KnownBase
    variant: str | None = None


def named(text: str) -> Named | None:
    """What an adapter's config means by `text`: an id, or a path that ends in one.

    `google/flan-t5-xxl`, `/models/google/flan-t5-xxl`, `/content/Llama-2-7b-hf`, a snapshot in a
    cache of the Hub. A last part alone counts where it is the name of one thing.
    """
    snapshot = _SNAPSHOT.search(text)
    if snapshot:
        text = "/".join(snapshot.groups())
    parts = [part for part in text.replace("\\", "/").lower().split("/") if part]
    if not parts:
        return None
    whole, short = _names()
    return whole.get("/".join(parts[-2:])) or short.get(parts[-1])


@cache
def _names() -> tuple[Mapping[str, Named], Mapping[str, Named]]:
    """By the whole name and by its last part, in lower case."""
    whole: dict[str, Named] = {}
    for base in known():
        whole |= {name.lower(): Named(base) for name in (base.name, *base.aliases)}
        for variant in base.variants:
            names = (variant.name, *variant.aliases)
            whole |= {name.lower(): Named(base, variant.name) for name in names}
    meanings: dict[str, set[tuple[str, str | None]]] = {}
    for name, found in whole.items():
        last = name.rpartition("/")[2]
        meanings.setdefault(last, set()).add((found.base.name, found.variant))
    lasts = ((name.rpartition("/")[2], found) for name, found in whole.items())
    return whole, {last: found for last, found in lasts if len(meanings[last]) == 1}
