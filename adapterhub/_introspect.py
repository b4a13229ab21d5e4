"""Asks transformers what an architecture looks like, on the meta device: names, never weights.

`describe` returns the document that `registry/architectures/<model_type>.json` holds (schema
`schemas/architecture.json`). It is called by `tools/make_architectures.py`, and by
`adapterhub.catalogue` for a model type that is not shipped. Importing this module is cheap;
calling `describe` imports torch and transformers.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import reduce
from typing import Any

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
class Module:
    """Tensors saved directly under one path, or under the paths that one pattern matches.

    `optional`: tensors that some of these paths, or some variants of the config, do not have.
    """

    kind: str
    parameters: frozenset[str]
    buffers: frozenset[str]
    optional: frozenset[str] = frozenset()

    @property
    def tensors(self) -> frozenset[str]:
        return self.parameters | self.buffers

    def merged(self, other: Module) -> Module:
        return Module(
            self.kind or other.kind,
            self.parameters | other.parameters,
            self.buffers | other.buffers,
            self.optional | other.optional | (self.tensors ^ other.tensors),
        )

    def document(self) -> dict[str, Any]:
        names = {
            "parameters": sorted(self.parameters),
            "buffers": sorted(self.buffers),
            "optional": sorted(self.optional),
        }
        kept = {key: value for key, value in names.items() if value or key == "parameters"}
        return {"kind": self.kind, **kept}


Modules = dict[str, Module]


@dataclass(frozen=True)
class Fused:
    """See `catalogue.Fused`."""

    parts: tuple[str, ...]
    transposed: bool

    def document(self) -> dict[str, Any]:
        return {"parts": list(self.parts), "transposed": self.transposed}


@dataclass(frozen=True)
class Names:
    """What saving a model calls its tensors.

    `plain`: name in memory → in the files. `experts`: name in the files of a part of one expert →
    name in memory of what holds them all; `fused`: that name → what it holds.
    """

    plain: Mapping[str, str]
    experts: Mapping[str, str]
    fused: Mapping[str, Fused]


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
            model = _build(cls, _config(model_type, {**overrides, "tie_word_embeddings": tie}))
            names = None if model is None else stored_names(model)
            live = None if names is None else live_patterns(names.plain)
            if names is None or live is None:
                return None
            ties = ties_of(model, names.plain)
            described.append((patterned(modules_of(model, names)), ties, live, names.fused))
    modules = reduce(_over_variants, (modules for modules, *_ in described))
    every_live = {pattern: path for *_, live, _ in described for pattern, path in live.items()}
    every_fused = {
        _pattern(name): Fused(tuple(map(_pattern, fused.parts)), fused.transposed)
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


# --- names ------------------------------------------------------------------------------------


def stored_names(model: Any) -> Names | None:
    """The names that a model saved as it is would have in its files.

    None where saving does more to tensors than renaming them and taking experts apart. Prefixes
    that transformers takes away on loading, if files have them, are not in these names.
    """
    from transformers.core_model_loading import revert_weight_conversion

    state = model.state_dict()
    saved = revert_weight_conversion(model, dict(state))
    by_tensor = {id(tensor): name for name, tensor in saved.items()}
    plain = {name: by_tensor[id(t)] for name, t in state.items() if id(t) in by_tensor}
    experts: dict[str, str] = {}
    fused = {name: Fused((), found) for name in plain if (found := _is_transposed(model, name))}
    for name in state.keys() - plain.keys():
        parts = _taken_apart(model, name) if state[name].ndim == 3 else None
        if parts is None:
            return None
        fused[name] = parts
        experts |= dict.fromkeys(_numbered(parts, state[name].shape[0]), name)
    if len(plain) + len(experts) != len(saved) or not experts.keys() <= saved.keys():
        return None
    return Names(plain, experts, fused)


def _is_transposed(model: Any, name: str) -> bool:
    """Whether a parameter of experts is (experts, in, out), as its module says."""
    owner = model.get_submodule(name.rpartition(".")[0])
    return bool(getattr(owner, "is_transposed", False)) and model.state_dict()[name].ndim == 3


def _taken_apart(model: Any, name: str) -> Fused | None:
    """What saving makes of a parameter that holds experts, tried on small numbers in its place."""
    import torch
    from transformers.core_model_loading import revert_weight_conversion

    whole = torch.arange(2 * 6 * 5).reshape(2, 6, 5)  # experts, rows, columns
    found: dict[str, list[Any]] = defaultdict(list)
    for stored, tensor in sorted(revert_weight_conversion(model, {name: whole}).items()):
        found[_of_any_expert(stored)].append(tensor)
    if any(len(tensors) != 2 or "*" not in part for part, tensors in found.items()):
        return None
    for turned in (False, True):
        experts = whole.transpose(1, 2) if turned else whole
        parts = sorted(found, key=lambda part: int(found[part][0].min()))
        joined = [torch.cat([found[part][e] for part in parts]) for e in (0, 1)]
        if all(torch.equal(joined[e], experts[e]) for e in (0, 1)):
            return Fused(tuple(parts), turned)
    return None


def _of_any_expert(name: str) -> str:
    """`name` with `*` for its last number."""
    parts = name.split(".")
    places = [place for place, part in enumerate(parts) if _is_number(part)]
    return ".".join([*parts[: places[-1]], "*", *parts[places[-1] + 1 :]]) if places else name


def _numbered(fused: Fused, count: int) -> list[str]:
    return [part.replace("*", str(expert)) for part in fused.parts for expert in range(count)]


def live_patterns(names: Mapping[str, str]) -> dict[str, str] | None:
    """Pattern of a path in memory → in the files, where they differ; None if numbers change."""
    found = {}
    for live, stored in names.items():
        path, stored_path = live.rpartition(".")[0], stored.rpartition(".")[0]
        if path == stored_path:
            continue
        if _numbers(path) != _numbers(stored_path):
            return None
        found[_pattern(path)] = _pattern(stored_path)
    return found


def modules_of(model: Any, names: Names) -> Modules:
    """Stored path → module, for every module that directly holds saved tensors.

    Each part of an expert is a Linear, whatever holds them all in memory.
    """
    buffers = {name for name, _ in model.named_buffers(remove_duplicate=False)}
    held: dict[str, dict[str, str]] = defaultdict(dict)
    for live, stored in names.plain.items():
        path, _, tensor = stored.rpartition(".")
        held[path][tensor] = live
    found = {}
    for path, tensors in held.items():
        live_path = next(iter(tensors.values())).rpartition(".")[0]
        saved_buffers = frozenset(tensor for tensor, live in tensors.items() if live in buffers)
        kind = kind_of(model.get_submodule(live_path))
        found[path] = Module(kind, frozenset(tensors) - saved_buffers, saved_buffers)
    for stored in names.experts:
        path, _, tensor = stored.rpartition(".")
        found[path] = Module("Linear", frozenset({tensor}), frozenset())
    return found


def kind_of(module: Any) -> str:
    """How a merge has to treat the module's weight; the name of its class where nothing is said."""
    from torch import nn
    from transformers.pytorch_utils import Conv1D

    if isinstance(module, Conv1D):
        return "Conv1D"
    name = type(module).__name__
    if isinstance(module, nn.LayerNorm) or name.endswith(("LayerNorm", "RMSNorm")):
        return "Norm"
    if isinstance(module, (nn.Conv1d, nn.Conv2d, nn.Conv3d)):
        return _kind_of_convolution(module)
    plain = (nn.Linear, nn.Embedding, nn.MultiheadAttention)
    return next((kind.__name__ for kind in plain if isinstance(module, kind)), name)


def _kind_of_convolution(module: Any) -> str:
    """Merges refuse those that are grouped, or padded with other than zeros, by this name."""
    plain = f"Conv{module.weight.ndim - 2}d"
    if module.groups > 1:
        return f"Grouped{plain}"
    return plain if module.padding_mode == "zeros" else f"Padded{plain}"


def ties_of(model: Any, names: Mapping[str, str]) -> dict[str, str]:
    """Stored name of a tensor that is not saved → of the saved tensor that it shares."""
    declared = model.all_tied_weights_keys
    groups: dict[int, list[str]] = defaultdict(list)
    for name, tensor in model.state_dict(keep_vars=True).items():
        groups[id(tensor)].append(name)
    ties = {}
    for shared in groups.values():
        source = next((name for name in shared if name not in declared), shared[0])
        ties.update({names[name]: names[source] for name in shared if name != source})
    return ties


def patterned(modules: Modules) -> Modules:
    """Numbers in paths become `*`, but for those without which unlike modules would be mixed.

    `encoder.layer.0.output.dense` → `encoder.layer.*.output.dense`; where `head.0` is a Linear and
    `head.1` a Norm, both keep their number.
    """
    found: Modules = {}
    rest = list(modules)
    most_parts = max((path.count(".") + 1 for path in modules), default=0)
    for kept in range(most_parts + 1):
        groups: dict[str, list[str]] = defaultdict(list)
        for path in rest:
            groups[_pattern(path, kept)].append(path)
        rest = []
        for pattern, paths in groups.items():
            if len({modules[path].kind for path in paths}) > 1:
                rest += paths
            else:
                found[pattern] = reduce(Module.merged, (modules[path] for path in paths))
    return found


def _pattern(path: str, kept: int = 0) -> str:
    """`path` with `*` for its numbers, except the last `kept` of them."""
    parts = path.split(".")
    numbers = [place for place, part in enumerate(parts) if _is_number(part)]
    for place in numbers[: max(0, len(numbers) - kept)]:
        parts[place] = "*"
    return ".".join(parts)


def _numbers(path: str) -> list[str]:
    return [part for part in path.split(".") if _is_number(part)]


def _is_number(part: str) -> bool:
    return re.fullmatch("[0-9]+", part) is not None


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
