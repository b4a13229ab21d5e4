"""The document of an architecture: all its classes, over variants of its config."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import reduce
from typing import Any

from adapterhub._introspect.saving import (
    Fused,
    Module,
    Modules,
    live_patterns,
    modules_of,
    patterned,
    starred,
    stored_names,
    ties_of,
)
from adapterhub.errors import NotSupported

# PEFT's task types, MASKED_LM and IMAGE_CLS (ours) → transformers' table of classes. A class that
# serves several tasks is listed under the first of them.
TASKS: Mapping[str, str] = {
    "FEATURE_EXTRACTION": "MODEL_MAPPING_NAMES",
    "SEQ_2_SEQ_LM": "MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES",
    "CAUSAL_LM": "MODEL_FOR_CAUSAL_LM_MAPPING_NAMES",
    "SEQ_CLS": "MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES",
    "TOKEN_CLS": "MODEL_FOR_TOKEN_CLASSIFICATION_MAPPING_NAMES",
    "QUESTION_ANS": "MODEL_FOR_QUESTION_ANSWERING_MAPPING_NAMES",
    "MASKED_LM": "MODEL_FOR_MASKED_LM_MAPPING_NAMES",
    "IMAGE_CLS": "MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES",
}

Overrides = Mapping[str, Any]


@dataclass(frozen=True)
class Class:
    """One class of transformers, by the names in its files.

    `ties` are those when the config wants them, `forced_ties` when it does not. `live`: pattern
    of a module's path in memory → in the files, where the two differ. `fused`: pattern of a
    parameter in memory that holds all experts of a layer.
    """

    modules: Modules
    ties: Mapping[str, str]
    forced_ties: Mapping[str, str]
    live: Mapping[str, str]
    fused: Mapping[str, Fused]


# --- the document -----------------------------------------------------------------------------


def describe(model_type: str, variants: Sequence[Overrides] = ({},)) -> dict[str, Any]:
    """What the catalogue says of `model_type`, over all `variants` of its default config.

    Raises NotSupported for a model type that transformers does not know, or whose base model
    cannot be built on the meta device, or whose files cannot be told from its modules.
    """
    import transformers

    names, tasks = _class_names(model_type)
    with _quiet():
        classes = dict(_classes(model_type, names, variants))
    base = tasks["FEATURE_EXTRACTION"]
    if base not in classes:
        raise NotSupported(
            f"model type {model_type} is not in the catalogue, and its class {base} cannot be "
            "described: its config alone does not build it, or its files hold other tensors than "
            "the model in memory",
            remedy="use a base of an architecture that `registry/architectures` lists",
        )
    prefixes = {name: _prefix(classes[base].modules, classes[name].modules) for name in classes}
    return {
        "model_type": model_type,
        "generated_with": {"transformers": transformers.__version__},
        "base_class": base,
        "prefix": _usual([prefix for name, prefix in prefixes.items() if name != base]),
        "tying": _tying(model_type, classes),
        "tasks": {task: tasks[task] for task in sorted(tasks) if tasks[task] in classes},
        "modules": _documents(classes[base].modules),
        "classes": {
            name: _class_document(classes[base].modules, classes[name], prefixes[name])
            for name in sorted(classes)
        },
    }


def _class_document(base: Modules, own: Class, prefix: str) -> dict[str, Any]:
    inherited = {join(prefix, path): module for path, module in base.items()}
    lacks = [path for path in base if join(prefix, path) not in own.modules]
    adds = {p: module for p, module in own.modules.items() if inherited.get(p) != module}
    live = {"live": dict(sorted(own.live.items()))} if own.live else {}
    fused = {name: own.fused[name].document() for name in sorted(own.fused)}
    return {
        "prefix": prefix,
        "lacks": sorted(lacks),
        "adds": _documents(adds),
        "tied": dict(sorted(own.ties.items())),
        **live,
        **({"fused": fused} if fused else {}),
    }


def _documents(modules: Modules) -> dict[str, Any]:
    return {path: modules[path].document() for path in sorted(modules)}


def join(prefix: str, path: str) -> str:
    return ".".join(part for part in (prefix, path) if part)


def _prefix(base: Modules, own: Modules) -> str:
    """The prefix under which the most of the base class's modules are found; the shortest of them.

    Measured, because `base_model_prefix` does not tell: T5's is "transformer", which only some of
    its classes use.
    """
    found = Counter(
        path.removesuffix(tail).removesuffix(".")
        for tail in base
        for path in own
        if tail and (path == tail or path.endswith(f".{tail}"))
    )
    return min(found, key=lambda prefix: (-found[prefix], len(prefix), prefix), default="")


def _usual(prefixes: Sequence[str]) -> str:
    counts = Counter(prefixes)
    return min(counts, key=lambda prefix: (-counts[prefix], prefix), default="")


def _tying(model_type: str, classes: Mapping[str, Class]) -> str:
    """When the ties hold: `never`, `always`, or as the config says, with its default."""
    if not any(own.ties for own in classes.values()):
        return "never"
    if all(own.ties == own.forced_ties for own in classes.values()):
        return "always"
    default = getattr(_config(model_type, {}), "tie_word_embeddings", False)
    return "by-default" if default else "on-request"


# --- transformers -----------------------------------------------------------------------------


@contextmanager
def _quiet() -> Iterator[None]:
    """Building classes from bare configs makes transformers give advice that nobody asked for."""
    from transformers.utils import logging

    before = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(before)


def _class_names(model_type: str) -> tuple[list[str], dict[str, str]]:
    """Names of all classes that transformers' auto classes know, and which serves which task."""
    from transformers.models.auto import modeling_auto

    tables = sorted(name for name in vars(modeling_auto) if re.fullmatch(r"MODEL_\w*NAMES", name))
    listed = {name: _entries(getattr(modeling_auto, name), model_type) for name in tables}
    tasks = {task: listed[table][0] for task, table in TASKS.items() if listed.get(table)}
    if "FEATURE_EXTRACTION" not in tasks:
        raise NotSupported(
            f"model type {model_type!r} is neither in the catalogue nor known to transformers",
            remedy="check `model_type` in the base's config.json; models that bring their own "
            "Python code are not supported",
        )
    return sorted({name for names in listed.values() for name in names}), tasks


def _entries(table: Mapping[str, Any], model_type: str) -> list[str]:
    entry = table.get(model_type, ())
    return [entry] if isinstance(entry, str) else list(entry)


def _config(model_type: str, overrides: Overrides) -> Any:
    from transformers import CONFIG_MAPPING

    return CONFIG_MAPPING[model_type](**overrides)


def _config_or_none(model_type: str, overrides: Overrides) -> Any:
    """None where the config refuses these values: DBRX cannot tie its embeddings."""
    try:
        return _config(model_type, overrides)
    except Exception:  # validators of configs raise what they like
        return None


def _classes(
    model_type: str, names: Sequence[str], variants: Sequence[Overrides]
) -> Iterator[tuple[str, Class]]:
    """Classes that are of this architecture and can be built; the rest is left out."""
    import transformers

    config_class = type(_config(model_type, {}))
    for name in names:
        cls = getattr(transformers, name, None)
        if cls is None or getattr(cls, "config_class", None) is not config_class:
            continue
        found = _describe_class(cls, model_type, variants)
        if found is not None:
            yield name, found


def _describe_class(cls: Any, model_type: str, variants: Sequence[Overrides]) -> Class | None:
    """None for a class that cannot be built, or whose files hold other tensors than its modules."""
    described = []
    for tie in (True, False):
        for overrides in variants:
            config = _config_or_none(model_type, {**overrides, "tie_word_embeddings": tie})
            if config is None:
                continue
            model = _build(cls, config)
            names = None if model is None else stored_names(model)
            live = None if names is None else live_patterns(names.plain)
            if names is None or live is None:
                return None
            ties = ties_of(model, names.plain)
            described.append((patterned(modules_of(model, names)), ties, live, names.fused))
    if not described:
        return None
    modules = reduce(_over_variants, (modules for modules, *_ in described))
    every_live = {pattern: path for *_, live, _ in described for pattern, path in live.items()}
    every_fused = {
        starred(name): Fused(tuple(map(starred, fused.parts)), fused.transposed)
        for *_, found in described
        for name, fused in found.items()
    }
    return Class(modules, described[0][1], described[-1][1], every_live, every_fused)


def _build(cls: Any, config: Any) -> Any:
    """A model on the meta device, or None where its constructor cannot work there."""
    import torch

    try:
        with torch.device("meta"):
            return cls(config)
    except (AttributeError, ImportError, NotImplementedError, RuntimeError, TypeError, ValueError):
        return None


def _over_variants(one: Modules, other: Modules) -> Modules:
    """Union of two variants; what only one of them has becomes optional."""
    nothing = Module("", frozenset(), frozenset())
    union = {}
    for path in {**one, **other}:
        first, second = one.get(path), other.get(path)
        if first and second and first.kind != second.kind:
            raise NotSupported(f"{path} is {first.kind} or {second.kind}, depending on the config")
        union[path] = (first or nothing).merged(second or nothing)
    return union
