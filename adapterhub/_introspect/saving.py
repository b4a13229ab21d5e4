"""What a model calls its tensors in its files, and what the modules are that hold them."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from functools import reduce
from typing import Any


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
    try:
        saved = revert_weight_conversion(model, {name: whole})
    except ValueError:  # saving needs other tensors beside this one
        return None
    for stored, tensor in sorted(saved.items()):
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
        found[starred(path)] = starred(stored_path)
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


# --- patterns ---------------------------------------------------------------------------------


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
            groups[starred(path, kept)].append(path)
        rest = []
        for pattern, paths in groups.items():
            if len({modules[path].kind for path in paths}) > 1:
                rest += paths
            else:
                found[pattern] = reduce(Module.merged, (modules[path] for path in paths))
    return found


def starred(path: str, kept: int = 0) -> str:
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
