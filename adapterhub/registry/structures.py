"""The structure of a checkpoint on disk, for comparing it with what an adapter tells."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from adapterhub.base import Base, respelled
from adapterhub.catalogue import ModelClass
from adapterhub.known_bases import (
    Facts,
    ModulePath,
    Row,
    Shape,
    Size,
    Structure,
    parsed,
    sizes,
    structure,
)

Rows = dict[tuple[str, tuple[Size, ...], tuple[tuple[str, Shape], ...]], set[tuple[int, ...]]]

# What configurations of different model types call the same figure.
_FIELDS: Mapping[str, tuple[str, ...]] = {
    "layers": ("num_hidden_layers", "n_layer", "num_layers", "n_layers", "encoder_layers"),
    "decoder_layers": ("decoder_layers", "num_decoder_layers"),
    "width": ("hidden_size", "d_model", "n_embd", "dim"),
    "heads": ("num_attention_heads", "n_head", "num_heads", "n_heads", "encoder_attention_heads"),
    "kv_heads": ("num_key_value_heads", "num_kv_heads"),
    "head_size": ("head_dim", "d_kv"),
    "vocabulary": ("vocab_size",),
}


def of_base(base: Base) -> Structure:
    """By the names in the files, and by those of every class that loads them."""
    classes = tuple(base.architecture.classes.values()) if base.architecture else ()
    prefixes = {found.prefix for found in classes}
    found: Rows = {}
    for path, tensors in _modules(base).items():
        kind = _kind(base, path)
        row_sizes = sizes(kind, tensors) if tensors else ((None, None),)
        shapes = tuple(sorted(tensors.items()))
        for spelled in _spellings(base, path, prefixes, classes):
            place = parsed(spelled)
            if place is not None:
                key = (place.tail, row_sizes, shapes)
                found.setdefault(key, set()).add(place.numbers)
    words = {word for prefix in (*prefixes, base.prefix) for word in prefix.split(".")}
    rows = [*_rows(found), *(row for own in classes for row in _fused(own, found))]
    return structure(rows, frozenset(words), facts_of(base.config))


def _modules(base: Base) -> dict[str, dict[str, Shape]]:
    """Path → shapes of its tensors; none for a module whose weights are packed, as in 4 bits."""
    found: dict[str, dict[str, Shape]] = {}
    for name, tensor in base.tensors.items():
        path, _, own = name.rpartition(".")
        shapes = found.setdefault(path, {})
        if tensor.dtype.startswith(("F", "BF")):
            shapes[own] = tensor.shape
    return found


def _kind(base: Base, path: str) -> str:
    found = base.model_class
    name = base.in_class(f"{path}.weight").rpartition(".")[0]
    known = found.module(name) if found else None
    return known.kind if known else ""


def _spellings(
    base: Base, path: str, prefixes: set[str], classes: tuple[ModelClass, ...]
) -> Iterator[str]:
    """What adapters may call the module: as in the files, in each class, and in its memory."""
    bare = respelled(path, base.prefix, "")
    names = {path, bare, *(respelled(bare, "", prefix) for prefix in prefixes)}
    yield from names
    for own in classes:
        in_memory = {stored: live for live, stored in own.live.items()}
        for name in names if in_memory else ():
            parts = name.split(".")
            numbers = [part for part in parts if part.isdecimal()]
            pattern = ".".join("*" if part.isdecimal() else part for part in parts)
            if pattern in in_memory:
                yield _filled(in_memory[pattern], numbers)


def _filled(pattern: str, numbers: list[str]) -> str:
    rest = iter(numbers)
    return ".".join(next(rest, "0") if part == "*" else part for part in pattern.split("."))


def _rows(found: Rows) -> Iterator[tuple[ModulePath, Row]]:
    for (tail, row_sizes, shapes), numbers in found.items():
        row = Row((), row_sizes, dict(shapes), frozenset(numbers))
        yield ModulePath(frozenset(), tail, ()), row


def _fused(own: ModelClass, found: Rows) -> Iterator[tuple[ModulePath, Row]]:
    """Parameters that hold all experts in memory, of files that have a tensor for each."""
    by_tail = {tail: (row_sizes, numbers) for (tail, row_sizes, _), numbers in found.items()}
    for name, fused in own.fused.items():
        parts = [by_tail.get(_tail(part.rpartition(".")[0])) for part in fused.parts]
        sides = [part[0][0] for part in parts if part and part[0]]
        if not sides or len(sides) < len(fused.parts) or None in [s[0] for s in sides]:
            continue
        size = sum(side[0] or 0 for side in sides), sides[0][1]
        layers = {numbers[:-1] for part in parts if part for numbers in part[1]}
        row = Row((), (size, size[::-1]), {}, frozenset(layers))
        yield ModulePath(frozenset(), _tail(name), ()), row


def _tail(pattern: str) -> str:
    place = parsed(pattern.replace("*", "0"))
    return place.tail if place else ""


def facts_of(config: Mapping[str, Any]) -> Facts:
    """Figures of a config.json; of a model with a language model inside, those of that one."""
    inner = config.get("text_config")
    fields = {**config, **inner} if isinstance(inner, Mapping) else config
    found: dict[str, Any] = {ours: _first(fields, theirs) for ours, theirs in _FIELDS.items()}
    found["kv_heads"] = found["kv_heads"] or found["heads"]
    if not found["head_size"] and found["width"] and found["heads"]:
        found["head_size"] = found["width"] // found["heads"]
    return Facts(**found)


def _first(fields: Mapping[str, Any], names: tuple[str, ...]) -> int | None:
    values = (fields.get(name) for name in names)
    whole = (v for v in values if isinstance(v, int) and not isinstance(v, bool) and v > 0)
    return next(whole, None)
