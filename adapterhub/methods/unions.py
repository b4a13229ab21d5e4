"""Of AdapterHub's unions, the part that is a change of weights: a LoRA whose gate is constant.

UniPELT (Mao et al., https://arxiv.org/abs/2110.07577) has bottlenecks, prefixes and LoRA at once,
each with a gate g, which for a LoRA stands in the place of alpha / r:

    y = W x + g · B A x        g: the mean over the tokens of σ(w x + b)

    w: (1, in)   b: (1,)   A: (r, in)   B: (out, r)

Where w is zero throughout, g is σ(b) whatever x is, and W + σ(b)·B·A is the same layer; without a
gate W + alpha/r·B·A is. A fused weight (GPT-2's c_attn) has a pair, and a gate, for each part that
is adapted, one below the other in the tensors. (adapters 1.3, methods/lora.py)

Roles: lora_A, lora_B, loras:gate.weight, loras:gate.bias; all others are of other members.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from decimal import Context, Decimal
from typing import Any

import numpy as np

from adapterhub.adapter import Adapter
from adapterhub.errors import InvalidAdapter, NotMergeable
from adapterhub.methods.computed import Computed, fp32
from adapterhub.methods.meaning import LowRank, Meaning, Values
from adapterhub.tensorfile import Tensor, shown

A, B, GATE, GATE_BIAS = LORA = ("lora_A", "lora_B", "loras:gate.weight", "loras:gate.bias")
_PREFIXES = (".prefix_tuning", "prefix_tuning", "prefix_tuning.pool")  # modules that hold them
_PREFIX_GATES = "prefix_gates:"
METHODS = ("mam", "unipelt")  # whose adapters are unions
_LORAS = ("lora_", "loras:", "vera_")  # how all roles of a LoRA begin, those of variants too
_FLOATS = ("F32", "F16", "BF16")
_OTHERS = ("dora", "use_dora", "vera_d", "vera_b")  # variants, whose formula is another
_MOST = 20
_ATTACH = "attach the whole adapter to a model in memory: ah.attach(model, REF)"

# A module of the adapter → its path in the base, and the names of the parts of its weight, a
# letter each ("qkv"), "" where it is not fused.
Place = Callable[[str], tuple[str, str]]


@dataclass(frozen=True)
class _Pairs:
    """The pairs of one module. `parts`: the numbers of those that have one; `of`: of how many."""

    module: str
    roles: Mapping[str, Tensor]
    parts: tuple[int, ...]
    of: int


def is_lora(role: str) -> bool:
    return role.startswith(_LORAS)


def kind(module: str, role: str) -> str:
    """Which member a tensor is of: "lora", "prefix_tuning", "" for a bottleneck."""
    if is_lora(role):
        return "lora"
    of_prefixes = module.endswith(_PREFIXES) or role.startswith(_PREFIX_GATES)
    return "prefix_tuning" if of_prefixes else ""


def member(adapter: Adapter) -> Mapping[str, Any]:
    """The config of the LoRA among the members. Raises NotMergeable where there is not one."""
    configs = adapter.config.get("configs") or ()
    found = [c for c in configs if isinstance(c, dict) and c.get("architecture") == "lora"]
    if adapter.method not in METHODS:
        raise NotMergeable(
            f"it is no union ({adapter.method}), and so has no LoRA among others",
            remedy="leave --part out",
        )
    if len(found) != 1:
        what = "no LoRA" if not found else "several LoRAs, which share the names of their tensors"
        raise NotMergeable(f"this {adapter.method} has {what}", remedy=_ATTACH)
    return found[0]


def lora(adapter: Adapter, alpha: Any, place: Place) -> Meaning:
    """What merging the LoRA alone has to do; reads the gates.

    `alpha`: as the forward pass took it. Raises NotMergeable for a gate that hangs on the input,
    InvalidAdapter where tensors and config contradict each other.
    """
    config = member(adapter)
    _refuse_variants(config)
    found = [
        _pairs(module, own, config, place)
        for module, roles in adapter.modules.items()
        if (own := {role: tensor for role, tensor in roles.items() if is_lora(role)})
    ]
    if not found:
        raise NotMergeable("the LoRA of this union has no tensors", remedy=_ATTACH)
    _refuse_moving(found)
    scale = float(alpha) / int(config["r"])
    return tuple(_low_rank(pairs, scale, place(pairs.module)[0]) for pairs in found)


def _refuse_variants(config: Mapping[str, Any]) -> None:
    mode = config.get("composition_mode", "add")
    named = [field for field in _OTHERS if config.get(field)]
    named += [] if mode == "add" else [f"composition_mode {str(mode)[:20]!r}"]
    if named:
        raise NotMergeable(
            f"the LoRA of this union is of another kind ({', '.join(named)} is set)",
            remedy="load it with the library adapters",
        )


def _pairs(
    module: str, roles: Mapping[str, Tensor], config: Mapping[str, Any], place: Place
) -> _Pairs:
    wanted = set(LORA if config.get("use_gating") else LORA[:2])
    if set(roles) != wanted:
        raise InvalidAdapter(
            f"{shown(module)} has {', '.join(map(shown, sorted(roles)))}; the config asks for "
            f"{', '.join(sorted(wanted))}",
            remedy="re-export the adapter with the config that it was trained with",
        )
    names = place(module)[1]
    matrices = config.get("attn_matrices") or ["q", "v"]
    known = matrices if isinstance(matrices, list) else []
    parts = tuple(n for n, name in enumerate(names) if name in known) if names else (0,)
    if not parts:
        raise InvalidAdapter(
            f"attn_matrices names no part of {shown(module)}, which has {', '.join(names)}",
            remedy="correct adapter_config.json",
        )
    _refuse_shapes(module, roles, int(config["r"]), len(parts))
    return _Pairs(module, roles, parts, len(names) or 1)


def _refuse_shapes(module: str, roles: Mapping[str, Tensor], r: int, count: int) -> None:
    """That all tensors are cut into `count` parts, of rank `r`."""
    a, b = roles[A].shape, roles[B].shape
    into = a[-1] if a else 0
    wanted = {A: (r * count, into), GATE: (count, into), GATE_BIAS: (count,)}
    wanted[B] = ((b[0] if b else 0) // count * count, r)
    for role, tensor in roles.items():
        if tensor.shape != wanted[role]:
            raise InvalidAdapter(
                f"{shown(module)}.{role} is {list(tensor.shape)}, {list(wanted[role])} was "
                f"expected: {count} part{'s' if count > 1 else ''} of rank {r}",
                remedy="re-export the adapter with the config that it was trained with",
            )
        if tensor.dtype not in _FLOATS:
            raise NotMergeable(
                f"{shown(module)}.{role} is stored as {tensor.dtype}, expected one of "
                f"{', '.join(_FLOATS)}",
                remedy="export the adapter in float32, float16 or bfloat16",
            )


# --- gates ------------------------------------------------------------------------------------


def _refuse_moving(found: Sequence[_Pairs]) -> None:
    moving = [p.module for p in found if GATE in p.roles and fp32(p.roles[GATE]).any()]
    if moving:
        raise NotMergeable(
            f"the gate of {len(moving)} of {len(found)} LoRA modules hangs on the input "
            "(loras:gate.weight is not zero), so that there is no weight to merge into",
            details=[shown(module) for module in moving[:_MOST]],
            remedy=_ATTACH,
        )


def _factors(pairs: _Pairs, scale: float) -> list[float]:
    """What B·A of each part is multiplied with, in fp64."""
    if GATE_BIAS not in pairs.roles:
        return [scale] * len(pairs.parts)
    biases = [float(bias) for bias in fp32(pairs.roles[GATE_BIAS])]
    if not np.isfinite(biases).all():
        raise InvalidAdapter(
            f"{shown(pairs.module)}.{GATE_BIAS} is not finite",
            remedy="this adapter diverged in training; take an earlier checkpoint",
        )
    return [sigmoid(bias) for bias in biases]


def sigmoid(bias: float) -> float:
    """1 / (1 + e^-bias) in fp64, the nearest one on every machine, which math.exp does not give."""
    context = Context(prec=60)
    power = context.exp(Decimal(max(-2000.0, min(2000.0, -bias))))  # beyond, it is 0 or 1
    return float(context.divide(Decimal(1), context.add(Decimal(1), power)))


def _low_rank(pairs: _Pairs, scale: float, module: str) -> LowRank:
    """Gates that differ within one weight are multiplied into B, in fp32."""
    factors = _factors(pairs, scale)
    same = len(set(factors)) == 1
    a, b = pairs.roles[A], pairs.roles[B]
    roles = tuple(role for role in LORA if role in pairs.roles)
    if pairs.of > 1:
        b = _spread(pairs, np.array([1.0] * len(factors) if same else factors, np.float32))
    return LowRank(module, a, b, factors[0] if same else 1.0, "linear", roles)


def _spread(pairs: _Pairs, gains: Values) -> Computed:
    """B of all parts in one: each in its own rows and its own columns, (out, r · parts)."""
    b = pairs.roles[B]
    size, r = b.shape[0] // len(pairs.parts), b.shape[1]
    shape = (size * pairs.of, r * len(pairs.parts))

    def compute() -> Values:
        whole, values = np.zeros(shape, np.float32), fp32(b)
        for number, (part, gain) in enumerate(zip(pairs.parts, gains, strict=True)):
            rows = slice(part * size, (part + 1) * size)
            mine = values[number * size : (number + 1) * size]
            whole[rows, number * r : (number + 1) * r] = mine * gain
        return whole

    return Computed(shape, compute, (b,))
