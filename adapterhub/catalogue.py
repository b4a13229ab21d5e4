"""What a merge must know of an architecture: which modules and tensors its classes have.

The data is in `registry/architectures/<model_type>.json` (schema `schemas/architecture.json`),
made by `tools/make_architectures.py`. For a model type that is not there, transformers is asked
on the meta device: that takes seconds, and is said. Nothing here runs code of a model's author.

A module's name is its path in the class, as in the class's saved tensors without the last part.
In patterns a part that is a number (of a layer, say) is `*`. An entry says what *may* be there:
`ModuleKind.optional` tensors depend on the config, and T5 has its `relative_attention_bias` only
in block 0, although the pattern matches all. What a checkpoint holds, its files say.
"""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from types import MappingProxyType
from typing import Any, Literal

from adapterhub._introspect import TASKS, describe
from adapterhub.errors import NotSupported, StoreError
from adapterhub.schema import data_dir

Tying = Literal["never", "always", "by-default", "on-request"]

_MODEL_TYPE = re.compile(r"[a-z0-9][a-z0-9_-]{0,63}")
_NUMBER = re.compile(r"0|[1-9][0-9]{0,5}")
_LEGACY = {"gamma": "weight", "beta": "bias"}
_MAX_NAME_CHARS = 512
_MAX_NUMBERS = 6  # in one name; each may stand for itself or for `*`


@dataclass(frozen=True)
class ModuleKind:
    """What is stored directly under a module's path.

    `kind`: Linear, Conv1D (GPT-2's, stored as (in, out)), Conv1d, Conv2d, Conv3d, Embedding, Norm
    (layer and RMS norms), MultiheadAttention; else the name of the module's class.
    `optional` names those of `parameters` and `buffers` that only some configurations have.
    """

    kind: str
    parameters: tuple[str, ...]
    buffers: tuple[str, ...] = ()
    optional: frozenset[str] = frozenset()


@dataclass(frozen=True)
class Fused:
    """A parameter that holds all experts of a layer in memory.

    `parts`: patterns of the tensors that the files have for each expert instead; the last `*` is
    the number of the expert. An expert of the parameter is its parts one after another along
    `out`. Without parts, the files hold the parameter itself. `transposed`: it is (experts, in,
    out).
    """

    parts: tuple[str, ...]
    transposed: bool


@dataclass(frozen=True)
class ModelClass:
    """A class of transformers. All names are those of its own saved tensors, `prefix` included.

    `modules`: pattern → kind. `heads`: the patterns that the base class does not have. `lacks`:
    the base class's patterns, without prefix, that this class does not have.
    `tied`: name of a tensor that shares another's weights → name of that one; where the two are
    tied, only the second is saved. See `tied_in` for whether they are. `live`: pattern of a path
    in memory → of the path that the saved tensors have, where transformers renames on saving.
    `fused`: pattern of a parameter's name in memory → what it holds.
    """

    name: str
    task: str | None
    prefix: str
    modules: Mapping[str, ModuleKind]
    tied: Mapping[str, str]
    heads: frozenset[str]
    lacks: frozenset[str]
    tying: Tying
    live: Mapping[str, str]
    fused: Mapping[str, Fused] = field(default_factory=dict)

    def fused_in(self, name: str) -> tuple[Fused, tuple[str, ...]] | None:
        """What the parameter `name` in memory holds; None if it is no parameter of experts.

        Second: the parts with their layers' numbers filled in, and `*` for the expert's.
        """
        numbers = [part for part in name.split(".") if _NUMBER.fullmatch(part)]
        found = self.fused.get(_starred(name))
        if found is None:
            return None
        return found, tuple(_filled(part, numbers) for part in found.parts)

    def stored_path(self, path: str) -> str:
        """The path in the saved tensors of a module whose path in a live model is `path`.

        Adapters name modules as in memory, since transformers 5 not always as in the files: a
        ViT's `layers.0.attention.q_proj` is saved as `encoder.layer.0.attention.attention.query`.
        """
        numbers = [part for part in path.split(".") if _NUMBER.fullmatch(part)]
        pattern = _starred(path)
        return _filled(self.live[pattern], numbers) if pattern in self.live else path

    def module(self, path: str) -> ModuleKind | None:
        """The module at `path`, e.g. `bert.encoder.layer.3.attention.self.query`, if it has one."""
        return next((self.modules[p] for p in _patterns(path) if p in self.modules), None)

    def has_tensor(self, name: str) -> bool:
        """True if the class loads a tensor of this name; also one that is tied to another.

        Checkpoints of the first BERTs say `gamma` and `beta` for a norm's weight and bias, which
        transformers reads too.
        """
        path, _, tensor = name.rpartition(".")
        module = self.module(path)
        if module is None:
            return False
        if module.kind == "Norm" and tensor in _LEGACY:
            tensor = _LEGACY[tensor]
        return tensor in module.parameters + module.buffers

    def is_head(self, path: str) -> bool:
        """True if the module at `path` is one that the base class does not have."""
        return any(pattern in self.heads for pattern in _patterns(path))

    def tied_in(self, config: Mapping[str, Any]) -> Mapping[str, str]:
        """The ties that hold under `config`, unless a checkpoint stores both tensors all the same.

        `config` is the parsed config.json; its `tie_word_embeddings` counts where the class
        listens to it.
        """
        asked = config.get("tie_word_embeddings")
        if self.tying in ("by-default", "on-request"):
            holds = asked if isinstance(asked, bool) else self.tying == "by-default"
        else:
            holds = self.tying == "always"
        return self.tied if holds else MappingProxyType({})


@dataclass(frozen=True)
class Architecture:
    """All classes of one `model_type`; `prefix` is the one that most classes put before the base's.

    `tasks`: PEFT's task type, MASKED_LM or IMAGE_CLS → name of the class.
    """

    model_type: str
    base_class: str
    prefix: str
    classes: Mapping[str, ModelClass]
    tasks: Mapping[str, str]

    def class_named(self, name: str) -> ModelClass | None:
        return self.classes.get(name)

    def class_for_task(self, task: str) -> ModelClass | None:
        return self.classes.get(self.tasks.get(task, ""))


def known() -> list[str]:
    """The model types that ship with the package, sorted."""
    return sorted(path.stem for path in (data_dir("registry") / "architectures").glob("*.json"))


def architecture(model_type: str, *, on_note: Callable[[str], None] | None = None) -> Architecture:
    """What is known of `model_type`, the string of that name in a base's config.json.

    `on_note` is told where transformers has to be asked. Raises NotSupported if transformers
    does not know it either, or cannot describe it.
    """
    if not isinstance(model_type, str) or not _MODEL_TYPE.fullmatch(model_type):
        raise NotSupported(
            f"model_type {str(model_type)[:80]!r} is not the name of an architecture",
            remedy="check `model_type` in the base's config.json",
        )
    shipped = _shipped(model_type)
    if shipped is not None:
        return shipped
    if on_note is not None:
        on_note(f"{model_type} is not in the catalogue; asking transformers, which is slower")
    return _asked(model_type)


@cache
def _shipped(model_type: str) -> Architecture | None:
    path = data_dir("registry") / "architectures" / f"{model_type}.json"
    try:
        document = json.loads(path.read_text("utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise StoreError(
            f"the catalogue's entry {path} cannot be read: {error}", remedy="reinstall adapterhub"
        ) from error
    return parse(document)


@cache
def _asked(model_type: str) -> Architecture:
    return parse(describe(model_type))


# --- from the document ------------------------------------------------------------------------


def parse(document: Mapping[str, Any]) -> Architecture:
    """An architecture from a document that follows the schema `architecture`."""
    base = _modules(document["modules"])
    served = {name: task for task, name in reversed(_by_precedence(document["tasks"]))}
    classes = {
        name: _class(name, served.get(name), entry, base, document["tying"])
        for name, entry in document["classes"].items()
    }
    return Architecture(
        model_type=document["model_type"],
        base_class=document["base_class"],
        prefix=document["prefix"],
        classes=MappingProxyType(classes),
        tasks=MappingProxyType(dict(document["tasks"])),
    )


def _by_precedence(tasks: Mapping[str, str]) -> list[tuple[str, str]]:
    """A class that serves several tasks goes by the first of them: BART's is SEQ_2_SEQ_LM."""
    order = list(TASKS)
    return sorted(tasks.items(), key=lambda item: order.index(item[0]))


def _class(
    name: str,
    task: str | None,
    entry: Mapping[str, Any],
    base: Mapping[str, ModuleKind],
    tying: Any,
) -> ModelClass:
    prefix, lacks = entry["prefix"], frozenset(entry["lacks"])
    adds = _modules(entry["adds"])
    inherited = {
        f"{prefix}.{path}".strip("."): kind for path, kind in base.items() if path not in lacks
    }
    return ModelClass(
        name=name,
        task=task,
        prefix=prefix,
        modules=MappingProxyType({**inherited, **adds}),
        tied=MappingProxyType(dict(entry["tied"])),
        heads=frozenset(adds) - frozenset(inherited),
        lacks=lacks,
        tying=tying,
        live=MappingProxyType(dict(entry.get("live", {}))),
        fused=MappingProxyType(
            {
                name: Fused(tuple(found["parts"]), found["transposed"])
                for name, found in entry.get("fused", {}).items()
            }
        ),
    )


def _modules(entries: Mapping[str, Mapping[str, Any]]) -> dict[str, ModuleKind]:
    return {
        path: ModuleKind(
            kind=entry["kind"],
            parameters=tuple(entry["parameters"]),
            buffers=tuple(entry.get("buffers", ())),
            optional=frozenset(entry.get("optional", ())),
        )
        for path, entry in entries.items()
    }


def _starred(path: str) -> str:
    """`path` with `*` for its numbers; "" if it has stars of its own."""
    if "*" in path:
        return ""
    return ".".join("*" if _NUMBER.fullmatch(part) else part for part in path.split("."))


def _filled(pattern: str, numbers: Sequence[str]) -> str:
    """`pattern` with these numbers for its first stars."""
    for number in numbers:
        pattern = pattern.replace("*", number, 1)
    return pattern


def _patterns(path: str) -> Iterator[str]:
    """The patterns that may describe `path`, the most literal first; none for a hostile one."""
    if len(path) > _MAX_NAME_CHARS or "*" in path:
        return
    parts = path.split(".")
    if sum(bool(_NUMBER.fullmatch(part)) for part in parts) > _MAX_NUMBERS:
        return
    choices = [(part, "*") if _NUMBER.fullmatch(part) else (part,) for part in parts]
    yield from map(".".join, itertools.product(*choices))
