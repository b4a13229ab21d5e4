"""Unions of AdapterHub on a live model: MAM (prefix + parallel bottleneck) and UniPELT.

Each member has its own config and its own tensors, told apart by their containers. UniPELT (Mao et
al., https://arxiv.org/abs/2110.07577) gives each a gate; that of a LoRA stands in the place of
alpha / r:

    y = W x + g · B A x        g: the mean over the tokens of σ(W_g x + b_g)

The gate hangs on the input, so that such a LoRA has no weight to be merged into; one without a
gate is added with alpha / r.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from adapterhub.adapter import Adapter
from adapterhub.errors import BaseMismatch, InvalidAdapter, NotSupported
from adapterhub.formats import adapterhub_config
from adapterhub.runtime import bottlenecks, prefixes
from adapterhub.runtime.arrays import torch_of
from adapterhub.runtime.bottlenecks import Modules, misfit, refuse_heads, refuse_weight
from adapterhub.runtime.hooks import Hooks
from adapterhub.runtime.places import base_path, places_of
from adapterhub.tensorfile import Tensor, shown

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

_LORA = ("lora_A", "lora_B", "loras:gate.weight", "loras:gate.bias")
_PREFIX = (".prefix_tuning", "prefix_tuning")


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
            kind = _kind(module, role)
            groups.setdefault(kind, {}).setdefault(module, {})[role] = tensor
    return groups


def _kind(module: str, role: str) -> str:
    if role in _LORA:
        return "lora"
    pooled = module.endswith((*_PREFIX, prefixes.POOL)) or role.startswith(prefixes.GATES)
    return "prefix_tuning" if pooled else ""


# --- gated LoRA -------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Lora:
    """`a`: (r, in), `b`: (out, r), `gate`: weight (1, in) and bias, or the scale."""

    a: torch.Tensor
    b: torch.Tensor
    gate: tuple[torch.Tensor, torch.Tensor] | float

    def leaving(self, module: Any, args: Any, kwargs: Any, output: Any) -> Any:
        import torch

        linear, x = torch.nn.functional.linear, args[0]
        change = linear(linear(x, self.a.to(x)), self.b.to(x))
        if isinstance(self.gate, float):
            return output + change * self.gate
        weight, bias = (part.to(x) for part in self.gate)
        gate = torch.sigmoid(linear(x, weight, bias)).mean(dim=1).unsqueeze(-1)
        return output + change * gate


def _loras(
    model: PreTrainedModel, modules: Modules, config: Mapping[str, Any], alpha: Any
) -> Hooks:
    if config.get("dora") or config.get("composition_mode", "add") != "add":
        raise NotSupported("a union with DoRA or (IA)³ is not attached", remedy="use adapters")
    hooks, wrong = Hooks(), []
    for module, roles in modules.items():
        path = base_path(model) + module
        try:
            lora = _lora(model, path, roles, config, float(alpha))
        except BaseMismatch as error:
            wrong.append(f"{shown(module)}: {error.message}")
            continue
        nbytes = sum(tensor.nbytes for tensor in (lora.a, lora.b))
        hooks += Hooks(after=((path, lora.leaving),), nbytes=nbytes)
    if wrong:
        raise misfit(model, wrong)
    return hooks


def _lora(
    model: PreTrainedModel,
    path: str,
    roles: Mapping[str, Tensor],
    config: Mapping[str, Any],
    alpha: float,
) -> _Lora:
    wanted = set(_LORA) if config.get("use_gating") else set(_LORA[:2])
    if set(roles) != wanted:
        raise BaseMismatch(f"it has {', '.join(sorted(roles))}; {', '.join(sorted(wanted))}")
    try:
        out, into = model.get_parameter(f"{path}.weight").shape
    except (AttributeError, ValueError) as error:
        raise BaseMismatch("the model has no such matrix") from error
    a, b = torch_of(roles["lora_A"]), torch_of(roles["lora_B"])
    rank = a.shape[0] if a.ndim else 0
    if not rank or (tuple(a.shape), tuple(b.shape)) != ((rank, into), (out, rank)):
        raise BaseMismatch(
            f"lora_A {list(a.shape)} and lora_B {list(b.shape)}, the weight is {[out, into]}"
        )
    if rank != config.get("r", rank):
        raise BaseMismatch(f"it has rank {rank}, config says r={config['r']}")
    if not config.get("use_gating"):
        return _Lora(a, b, alpha / rank)
    weight, bias = (torch_of(roles[role]) for role in _LORA[2:])
    if tuple(weight.shape) != (1, into) or tuple(bias.shape) != (1,):
        raise BaseMismatch(f"gate {list(weight.shape)}, {[1, into]} was expected")
    return _Lora(a, b, (weight, bias))
