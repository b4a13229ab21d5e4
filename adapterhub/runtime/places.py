"""Where AdapterHub's modules stand in an architecture: `registry/bottlenecks.json`, read.

A block of a transformer (attention, feed-forward) gives `h`, to which the model adds its input `r`
and which it may normalise then. A place says where both are met:

    stored     where an adapter's tensors are kept, in AdapterHub's names
    hidden     the module of the live model whose output is h
    residual   the module one of whose arguments is r
    norm       the norm of h + r, where the model has one there (BERT); without it, h + r goes on

Paths are those of the base model, a number of a layer is `*`. Source: adapters/models/*/mixin_*.py
and modeling_*.py of adapters 1.3, and the models of transformers 5.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from adapterhub.errors import NotSupported
from adapterhub.methods.lora_places import FILE, Fused, table

if TYPE_CHECKING:
    from transformers import PreTrainedModel

__all__ = ["FILE", "Fused"]


@dataclass(frozen=True)
class Argument:
    """An argument of the module `of`: by position, or by name where the caller gives names."""

    of: str
    at: int
    name: str

    def value(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
        """Raises NotSupported where the module was called in another way."""
        if len(args) > self.at:
            return args[self.at]
        if self.name in kwargs:
            return kwargs[self.name]
        raise NotSupported(
            f"{self.of} was called without {self.name}, so the adapter has no residual to add to",
            remedy="this version of transformers is newer than adapterhub; upgrade adapterhub",
        )


@dataclass(frozen=True)
class Place:
    """A place for a bottleneck. `location` is the field of the config that asks for it."""

    location: str
    stored: str
    hidden: str
    residual: Argument
    norm: str | None

    def at(self, layer: str) -> Place:
        """The place in one layer."""
        return replace(
            self,
            stored=_filled(self.stored, layer),
            hidden=_filled(self.hidden, layer),
            residual=replace(self.residual, of=_filled(self.residual.of, layer)),
            norm=self.norm and _filled(self.norm, layer),
        )


@dataclass(frozen=True)
class Attention:
    """An attention that takes prefixes; `prefix` names them in AdapterHub's keys.

    `projections`: the names of query, key, value and output where it knows no cache. `asked`: the
    field of the config that asks for these prefixes, if one does. `first`: whether the first layer
    counts the keys for all.
    """

    prefix: str
    stored: str
    module: str
    projections: tuple[str, ...] = ()
    asked: str = ""
    first: bool = False

    def at(self, layer: str) -> Attention:
        return replace(self, stored=_filled(self.stored, layer), module=_filled(self.module, layer))


@dataclass(frozen=True)
class Places:
    """All of one architecture.

    `embedded`: "after" or "before" and the module behind or ahead of which the embeddings are
    complete; None where AdapterHub has no invertible adapters. `turned_back`: whether these run
    backward before the output embeddings, too; the library has it so for its newer architectures.
    """

    places: tuple[Place, ...]
    attention: tuple[Attention, ...]
    embedded: tuple[str, str] | None
    turned_back: bool = False
    loras: tuple[Fused, ...] = ()


def known() -> tuple[str, ...]:
    """The model types that have places."""
    return tuple(sorted(table()))


def places_of(model: PreTrainedModel) -> Places:
    """Raises NotSupported, naming the architectures that are known."""
    kind = model.config.model_type
    row = table().get(kind)
    if row is None:
        raise NotSupported(
            f"AdapterHub's modules have no known place in the architecture {kind!r}",
            remedy=f"known are {', '.join(known())}",
        )
    turned_back = bool(row.get("turned_back"))
    row = table()[row["same_as"]] if "same_as" in row else row
    return Places(
        tuple(
            Place(p["location"], p["stored"], p["hidden"], Argument(**p["residual"]), p.get("norm"))
            for p in row["places"]
        ),
        tuple(
            Attention(**{**a, "projections": tuple(a.get("projections", ()))})
            for a in row.get("attention", ())
        ),
        next(iter(row.get("embedded", {}).items()), None),
        turned_back,
        tuple(Fused(**lora) for lora in row.get("loras", ())),
    )


# --- in one model -----------------------------------------------------------------------------


def base_path(model: PreTrainedModel) -> str:
    """What stands before the base model's paths in the model: `bert.`, or nothing."""
    prefix = model.base_model_prefix
    return f"{prefix}." if prefix and model.base_model is not model else ""


def without_prefix(model: PreTrainedModel, path: str) -> str:
    """An adapter's path of a module as the base model has it."""
    prefix = f"{model.base_model_prefix}."
    return path.removeprefix(prefix) if path.startswith(prefix) else path


def layers(model: PreTrainedModel, pattern: str) -> int:
    """How many layers the list before the `*` of a pattern has in the model."""
    stack = pattern.partition(".*")[0]
    try:
        return len(model.base_model.get_submodule(stack))
    except (AttributeError, TypeError):
        return 0


def layer_of(pattern: str, path: str) -> str | None:
    """The number that stands for the `*`; None if the path does not match."""
    match = re.fullmatch(re.escape(pattern).replace(r"\*", r"(0|[1-9][0-9]{0,5})"), path)
    return match[1] if match else None


def numbered(model: PreTrainedModel, patterns: tuple[str, ...]) -> Iterator[tuple[str, int, int]]:
    """`(pattern, layer, number over all stacks)`; AdapterHub counts a decoder's layers on."""
    offsets: dict[str, int] = {}
    total = 0
    for pattern in patterns:
        stack = pattern.partition(".*")[0]
        if stack not in offsets:
            offsets[stack] = total
            total += layers(model, pattern)
        for layer in range(layers(model, pattern)):
            yield pattern, layer, offsets[stack] + layer


def _filled(pattern: str, layer: str) -> str:
    return pattern.replace("*", layer)
