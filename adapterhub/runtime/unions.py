"""Unions of AdapterHub on a live model: MAM (prefix + parallel bottleneck) and UniPELT.

Each member has its own config and its own tensors, told apart by their containers. UniPELT (Mao et
al., https://arxiv.org/abs/2110.07577) gives each a gate; that of a LoRA stands in the place of
alpha / r:

    y = W x + g · B A x        g: the mean over the tokens of σ(W_g x + b_g)

The gate hangs on the input, so that such a LoRA has no weight to be merged into; one without a
gate is added with alpha / r. Which of them merge all the same, `methods.unions` says.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from adapterhub.adapter import Adapter
from adapterhub.errors import BaseMismatch, InvalidAdapter, NotSupported
from adapterhub.formats import adapterhub_config
from adapterhub.methods import unions
from adapterhub.runtime import bottlenecks, prefixes
from adapterhub.runtime.arrays import torch_of
from adapterhub.runtime.bottlenecks import Modules, misfit, refuse_heads, refuse_weight
from adapterhub.runtime.hooks import Hooks
from adapterhub.runtime.places import base_path, layer_of, places_of
from adapterhub.tensorfile import Tensor, shown

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

_LORA = unions.LORA


def plan(model: PreTrainedModel, adapter: Adapter, weight: float) -> Hooks:
    """See `hooks.Hooked`."""
    refuse_weight(adapter, weight)
    refuse_heads(adapter)
    members = _members(adapter)
    groups = _grouped(bottlenecks.by_base_path(model, adapter))
    wrong = [kind or "bottleneck" for kind in groups if kind not in members]
    if wrong:
        raise InvalidAdapter(
            f"there are tensors of {', '.join(wrong)}, which the union's config does not name",
            remedy="correct adapter_config.json",
        )
    hooks = Hooks()
    for kind, config in members.items():
        hooks += _planned(model, adapter, kind, groups.get(kind, {}), config)
    return hooks


def _planned(
    model: PreTrainedModel,
    adapter: Adapter,
    kind: str,
    modules: Modules,
    config: Mapping[str, Any],
) -> Hooks:
    if kind == "lora":
        return _loras(model, modules, config, adapterhub_config.alpha_of(config, adapter.config))
    way = prefixes.planned if kind == "prefix_tuning" else bottlenecks.planned
    return way(model, places_of(model), modules, config)


def _members(adapter: Adapter) -> dict[str, Mapping[str, Any]]:
    """By architecture, "" for a bottleneck."""
    found: dict[str, Mapping[str, Any]] = {}
    for config in adapter.config.get("configs") or ():
        kind = config.get("architecture") or "" if isinstance(config, dict) else "?"
        if kind not in ("", "prefix_tuning", "lora") or kind in found:
            raise NotSupported(
                f"a union with {str(kind)[:40] or 'two bottlenecks'!r} is not attached",
                remedy="load it with the library adapters",
            )
        found[kind] = config
    return found


def _grouped(modules: Modules) -> dict[str, dict[str, dict[str, Tensor]]]:
    groups: dict[str, dict[str, dict[str, Tensor]]] = {}
    for module, roles in modules.items():
        for role, tensor in roles.items():
            kind = unions.kind(module, role)
            groups.setdefault(kind, {}).setdefault(module, {})[role] = tensor
    return groups


# --- gated LoRA -------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Part:
    """What is added to rows `first` … of a weight: `a` (r, in), `b` (rows, r), and the gate's
    weight (1, in) and bias (1,), or the scale."""

    first: int
    a: torch.Tensor
    b: torch.Tensor
    gate: tuple[torch.Tensor, torch.Tensor] | float

    def change(self, x: torch.Tensor) -> torch.Tensor:
        import torch

        linear = torch.nn.functional.linear
        change: torch.Tensor = linear(linear(x, self.a.to(x)), self.b.to(x))
        if isinstance(self.gate, float):
            return change * self.gate
        weight, bias = (part.to(x) for part in self.gate)
        return change * torch.sigmoid(linear(x, weight, bias)).mean(dim=1).unsqueeze(-1)


@dataclass(frozen=True)
class _Lora:
    parts: tuple[_Part, ...]

    def leaving(self, module: Any, args: Any, kwargs: Any, output: Any) -> Any:
        import torch

        pad, out = torch.nn.functional.pad, output.shape[-1]
        for part in self.parts:
            rest = out - part.first - part.b.shape[0]
            output = output + pad(part.change(args[0]), (part.first, rest))
        return output

    @property
    def nbytes(self) -> int:
        gates = (t for part in self.parts if isinstance(part.gate, tuple) for t in part.gate)
        return sum(t.nbytes for t in (*gates, *(t for p in self.parts for t in (p.a, p.b))))


def _loras(
    model: PreTrainedModel, modules: Modules, config: Mapping[str, Any], alpha: Any
) -> Hooks:
    dora = config.get("dora") or config.get("use_dora")
    if dora or config.get("composition_mode", "add") != "add":
        raise NotSupported("a union with DoRA or (IA)³ is not attached", remedy="use adapters")
    known = places_of(model).loras
    hooks, wrong = Hooks(), []
    for module, roles in modules.items():
        fused = next((f for f in known if layer_of(f.stored, module) is not None), None)
        layer = layer_of(fused.stored, module) if fused else None
        path = fused.module.replace("*", str(layer)) if fused else module
        path = base_path(model) + path
        try:
            lora = _lora(model, path, roles, config, float(alpha), fused.parts if fused else "")
        except BaseMismatch as error:
            wrong.append(f"{shown(module)}: {error.message}")
            continue
        hooks += Hooks(after=((path, lora.leaving),), nbytes=lora.nbytes)
    if wrong:
        raise misfit(model, wrong)
    return hooks


def _lora(
    model: PreTrainedModel,
    path: str,
    roles: Mapping[str, Tensor],
    config: Mapping[str, Any],
    alpha: float,
    fused: str,
) -> _Lora:
    """`fused`: the names of the parts that the weight has, all of as many rows."""
    wanted = set(_LORA) if config.get("use_gating") else set(_LORA[:2])
    if set(roles) != wanted:
        raise BaseMismatch(f"it has {', '.join(sorted(roles))}; {', '.join(sorted(wanted))}")
    out, into = _sides(model, path)
    matrices = config.get("attn_matrices") or ["q", "v"]
    if not isinstance(matrices, list):
        raise BaseMismatch("attn_matrices of the config is no list")
    numbers = [n for n, name in enumerate(fused) if name in matrices] if fused else [0]
    if not numbers:
        raise BaseMismatch("attn_matrices of the config names none of its parts")
    count, size, r = len(numbers), out // max(1, len(fused)), int(config["r"])
    _fit(roles, config, {
        "lora_A": (r * count, into), "lora_B": (size * count, r),
        "loras:gate.weight": (count, into), "loras:gate.bias": (count,),
    })  # fmt: skip
    held = [torch_of(roles[role]) for role in _LORA if role in roles]
    cut = [tensor.reshape(count, -1, *tensor.shape[1:]) for tensor in held]
    return _Lora(
        tuple(
            _Part(number * size, a, b, (gate[0], gate[1].reshape(1)) if gate else alpha / r)
            for number, (a, b, *gate) in zip(numbers, zip(*cut, strict=True), strict=True)
        )
    )


def _sides(model: PreTrainedModel, path: str) -> tuple[int, int]:
    """(out, in) of a matrix, which a Conv1D has the other way round."""
    try:
        found = model.get_submodule(path)
        out, into = found.get_parameter("weight").shape
    except (AttributeError, ValueError) as error:
        raise BaseMismatch("the model has no such matrix") from error
    return (into, out) if type(found).__name__ == "Conv1D" else (out, into)


def _fit(
    roles: Mapping[str, Tensor], config: Mapping[str, Any], wanted: Mapping[str, tuple[int, ...]]
) -> None:
    a, b = roles["lora_A"].shape, roles["lora_B"].shape
    if len(b) == 2 and b[1] != config["r"]:
        raise BaseMismatch(f"it has rank {b[1]}, config says r={config['r']}")
    for role, tensor in roles.items():
        if tensor.shape != wanted[role]:
            raise BaseMismatch(
                f"{role} is {list(tensor.shape)}, {list(wanted[role])} was expected; lora_A is "
                f"{list(a)} and lora_B {list(b)}"
            )
