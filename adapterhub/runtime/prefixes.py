"""AdapterHub's prefix tuning on a live model (Li & Liang, https://arxiv.org/abs/2101.00190).

Trained keys and values stand in front of each layer's own, for every query to see:

    flat    control_trans, as (prefix, 2 · layers, heads, size of a head)
    MLP     W_2 f(W_0 e + b_0) + b_2 for the rows e of wte, cut in the same way

and with gates, times the mean over the tokens of σ(W x + b), of which the first output is for the
keys and the last for the values. The layer's attention is given a cache that puts them there, so
positions stay what they are without a prefix; PEFT counts the prefix, which is another function
for a model that was trained with AdapterHub. Source: adapters/methods/prefix_tuning.py of 1.3.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

from adapterhub.adapter import Adapter
from adapterhub.errors import BaseMismatch, NotSupported
from adapterhub.runtime import attending, prefix_cache
from adapterhub.runtime.arrays import torch_of
from adapterhub.runtime.bottleneck import activation
from adapterhub.runtime.bottlenecks import (
    Modules,
    by_base_path,
    misfit,
    refuse_heads,
    refuse_weight,
)
from adapterhub.runtime.hooks import Hooks
from adapterhub.runtime.invertible import CHECK
from adapterhub.runtime.places import (
    Attention,
    Places,
    base_path,
    numbered,
    places_of,
)
from adapterhub.tensorfile import Tensor, shown

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

POOL = "prefix_tuning.pool"
_HOME = "prefix_tuning"  # of the pool itself; each layer has it again
GATES = "prefix_gates:"
CONTAINER = "prefix_tunings:"
_MLP = ("control_trans.0.weight", "control_trans.0.bias")
_MLP2 = ("control_trans.2.weight", "control_trans.2.bias")


def plan(model: PreTrainedModel, adapter: Adapter, weight: float) -> Hooks:
    """See `hooks.Hooked`."""
    refuse_weight(adapter, weight)
    refuse_heads(adapter)
    if adapter.format != "adapterhub":
        raise NotSupported(f"prefixes of the format {adapter.format} are attached through PEFT")
    return planned(model, places_of(model), by_base_path(model, adapter), adapter.config)


def planned(
    model: PreTrainedModel, places: Places, modules: Modules, config: Mapping[str, Any]
) -> Hooks:
    """Hooks of the prefixes of `modules`, whose paths are those of the base model."""
    if not places.attention:
        raise NotSupported(
            f"the attention of a {model.config.model_type} takes no prefixes here",
            remedy="load it with the library adapters",
        )
    pools, gates = _sorted(modules)
    homes = {f"{module}.{POOL}" for module in _all(model, places)} | {_HOME}
    lost = [m for m, roles in modules.items() if not all(r.startswith(GATES) for r in roles)]
    lost = [module for module in lost if module not in homes]
    shape = _shape(model)
    layers = _layers(model, places, config)
    wrong = [f"{shown(m)}: no attention of that name" for m in (*lost, *gates) if m not in layers]
    wrong += [f"{role}: this architecture has no such prefix" for role in _others(pools, places)]
    if wrong:
        raise misfit(model, wrong)
    hooks = Hooks()
    for prefix in {attention.prefix for attention in layers.values()}:
        roles = {
            role.removeprefix(f"{prefix}."): tensor
            for role, tensor in pools.items()
            if role.startswith(f"{prefix}.")
        }
        mine = [a for a in layers.values() if a.prefix == prefix]
        values = _values(roles, config, shape, len(mine))
        for number, attention in enumerate(mine):
            gate = _gate(
                gates.get(attention.stored, {}), config, attention, int(model.config.hidden_size)
            )
            key, value = values[2 * number], values[2 * number + 1]
            own = type(model.get_submodule(base_path(model) + attention.module)).forward
            names = tuple(inspect.signature(own).parameters)[1:]
            hooks += _hooks(model, attention, prefix_cache.Prefixed(key, value, gate, names))
    return hooks


@dataclass(frozen=True)
class _Shape:
    heads: int
    size: int


def _shape(model: PreTrainedModel) -> _Shape:
    config = model.config
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    size = getattr(config, "d_kv", None) or getattr(config, "head_dim", None)
    size = size or config.hidden_size // config.num_attention_heads
    return _Shape(heads, size)


def _sorted(modules: Modules) -> tuple[dict[str, Tensor], dict[str, dict[str, Tensor]]]:
    """The pool's tensors, which pickles repeat in every layer, and each layer's gate."""
    pool: dict[str, Tensor] = {}
    gates: dict[str, dict[str, Tensor]] = {}
    for module, roles in modules.items():
        for role, tensor in roles.items():
            if role.startswith(GATES):
                layer = module.removesuffix(".prefix_tuning")
                gates.setdefault(layer, {})[role.removeprefix(GATES)] = tensor
                continue
            role = role.removeprefix(CONTAINER)  # where the name of the prefix is not a usual one
            first = pool.setdefault(role, tensor)
            if first is not tensor and not _same(first, tensor):
                raise BaseMismatch(
                    f"{shown(module)}.{role} differs between layers, which share one",
                    remedy="the adapter is damaged; save it again",
                )
    return pool, gates


def _same(a: Tensor, b: Tensor) -> bool:
    return a.shape == b.shape and a.read().tobytes() == b.read().tobytes()


def _layers(
    model: PreTrainedModel, places: Places, config: Mapping[str, Any]
) -> dict[str, Attention]:
    """By `stored`, in the order in which the library numbers prefixes."""
    left = set(config.get("leave_out") or ())
    every = _all(model, places)
    found = {
        name: a
        for name, (a, number) in every.items()
        if number not in left and (not a.asked or config.get(a.asked) is not False)
    }
    if any(a.first for a in found.values()) and left & {number for _, number in every.values()}:
        raise NotSupported(
            f"prefixes that leave out layers are not attached to a {model.config.model_type}: its "
            "first layer counts the keys for all",
            remedy="load it with the library adapters",
        )
    return found


def _all(model: PreTrainedModel, places: Places) -> dict[str, tuple[Attention, int]]:
    """Of the whole model, with the numbers that the config has for their layers."""
    by_pattern = {attention.module: attention for attention in places.attention}
    found = [
        (by_pattern[pattern].at(str(layer)), number)
        for pattern, layer, number in numbered(model, tuple(by_pattern))
    ]
    return {attention.stored: (attention, number) for attention, number in found}


def _others(pool: Mapping[str, Tensor], places: Places) -> list[str]:
    known = tuple(f"{attention.prefix}." for attention in places.attention)
    return [role for role in pool if not role.startswith(known)]


# --- keys and values --------------------------------------------------------------------------


def _values(
    roles: Mapping[str, Tensor], config: Mapping[str, Any], shape: _Shape, layers: int
) -> torch.Tensor:
    """(2 · layers, heads, prefix, size of a head): of each layer the keys, then the values."""
    row = 2 * layers * shape.heads * shape.size
    names = {"control_trans"} if config.get("flat") else {"wte.weight", *_MLP, *_MLP2}
    wrong = [f"there is no {name}" for name in sorted(names - roles.keys())]
    wrong += [f"{role} is none of a prefix's" for role in roles if role not in names]
    if not wrong:
        held = {role: torch_of(tensor) for role, tensor in roles.items()}
        flat = held["control_trans"] if config.get("flat") else _ejected(held, config, wrong)
        length = int(config.get("prefix_length") or 0)
        if not wrong and flat.numel() == length * row and length > 0:
            cut = flat.reshape(length, 2 * layers, shape.heads, shape.size)
            return cut.permute(1, 2, 0, 3).contiguous()
        wrong += [f"{flat.numel()} values, {length} · {row} were expected"] if not wrong else []
    raise BaseMismatch("the prefixes do not fit this model", details=wrong, remedy=CHECK)


def _ejected(
    held: Mapping[str, torch.Tensor], config: Mapping[str, Any], wrong: list[str]
) -> torch.Tensor:
    """What the MLP makes of its embeddings: one row for each row of them."""
    import torch

    first, second = (tuple(held[name] for name in names) for names in (_MLP, _MLP2))
    shapes = [tuple(tensor.shape) for tensor in (held["wte.weight"], *first, *second)]
    (rows, width), (out, inner) = (shapes[n] if len(shapes[n]) == 2 else (0, 0) for n in (0, 3))
    if shapes != [(rows, width), (inner, width), (inner,), (out, inner), (out,)]:
        said = ", ".join(str(list(shape)) for shape in shapes)
        wrong.append(f"the layers of the MLP do not go together: {said}")
    elif inner != (config.get("bottleneck_size") or inner):
        wrong.append(f"the MLP is {inner} wide, bottleneck_size is {config['bottleneck_size']}")
    if wrong:
        return torch.zeros(0)
    linear = torch.nn.functional.linear
    made = activation(config.get("non_linearity") or "tanh")(linear(held["wte.weight"], *first))
    return linear(made, *second)


def _gate(
    roles: Mapping[str, Tensor], config: Mapping[str, Any], attention: Attention, hidden: int
) -> tuple[torch.Tensor, torch.Tensor] | None:
    """Weight (1 or 2, hidden) and bias."""
    given = bool(config.get("use_gating"))
    if set(roles) != ({"weight", "bias"} if given else set()):
        raise BaseMismatch(
            f"{attention.stored}: use_gating is {'on' if given else 'off'}, and the tensors of "
            f"its gate are {', '.join(map(shown, sorted(roles))) or 'none'}",
            remedy="save the adapter again",
        )
    if not roles:
        return None
    rows = 2 if config.get("shared_gating") is False else 1
    weight, bias = roles["weight"].shape, roles["bias"].shape
    if (weight, bias) != ((rows, hidden), (rows,)):
        raise BaseMismatch(
            f"{attention.stored}: the gate is {list(weight)} and {list(bias)}, {[rows, hidden]} "
            f"and {[rows]} were expected",
            remedy=CHECK,
        )
    return torch_of(roles["weight"]), torch_of(roles["bias"])


def _hooks(model: PreTrainedModel, attention: Attention, prefixed: prefix_cache.Prefixed) -> Hooks:
    path = base_path(model) + attention.module
    held = (prefixed.key, prefixed.value, *(prefixed.gate or ()))
    nbytes = sum(tensor.nbytes for tensor in held)
    if not attention.projections:
        return Hooks(before=((path, prefixed.entered),), nbytes=nbytes)
    names = cast(attending.Projections, attention.projections)
    return Hooks(nbytes=nbytes) + attending.hooks(model, path, prefixed, names)
