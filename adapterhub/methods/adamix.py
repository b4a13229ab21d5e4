"""AdaMix: a mixture of bottlenecks, averaged after training (Wang et al.,
https://arxiv.org/abs/2205.12410).

    h + B · gelu(A · h)       A = Σ_k a_k · A_k,   B = Σ_k b_k · B_k,   biases alike

Each projection of the original's `ExpertSoup` has experts of its own, or one that all share;
training takes one at random, and inference their average, whose weights are the softmax of
`expert_score_weight`: zeros, that is equal weights, unless they were trained too. `averaged` makes
that one bottleneck. Its nonlinearity stands between what the model gives and what it takes, so that
no weight of the base can hold it.

Roles, as the original calls them, of the module that holds the `ExpertSoup`, with A down (r, width)
and B up (width, r): MoA_A.deepspeed_experts.<k>.weight, ….bias, MoA_A.expert_score_weight; MoA_B
likewise.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

import numpy as np

from adapterhub.adapter import REPLACE, Adapter, Problem
from adapterhub.errors import InvalidAdapter, NotMergeable
from adapterhub.methods import generic
from adapterhub.methods.computed import Computed, fp32
from adapterhub.methods.generic import idle, parts, signature
from adapterhub.methods.interface import Ranks
from adapterhub.methods.meaning import Meaning, Values
from adapterhub.tensorfile import Tensor, shown

__all__ = ["averaged", "idle", "meaning", "parts", "problems", "ranks", "signature"]
SOUP = "ExpertSoup"
# AdapterHub's fields for where a soup stands: after the projection, before residual and norm.
PLACED = {
    "non_linearity": "gelu",
    "scaling": 1.0,
    "is_parallel": False,
    "ln_before": False,
    "ln_after": False,
    "original_ln_before": False,
    "original_ln_after": True,
    "residual_before_ln": True,
    "adapter_residual_before_ln": False,
}
_EXPERT = re.compile(r"(MoA_[AB])\.deepspeed_experts\.(0|[1-9]\d{0,3})\.(weight|bias)")
_AVERAGED = {
    ("MoA_A", "weight"): "adapter_down.0.weight",
    ("MoA_A", "bias"): "adapter_down.0.bias",
    ("MoA_B", "weight"): "adapter_up.weight",
    ("MoA_B", "bias"): "adapter_up.bias",
}


def problems(adapter: Adapter) -> list[Problem]:
    found = generic.problems(adapter)
    for module, roles in adapter.modules.items():
        odd = [role for role in roles if not (role.startswith(REPLACE) or _is_role(role))]
        if odd:
            text = f"{shown(f'{module}.{odd[0]}')} is none of AdaMix's"
            return [*found, Problem("odd-tensors", text, generic.REMEDY, fatal=True)]
        try:
            for side in ("MoA_A", "MoA_B") if _is_soup(roles) else ():
                _experts(module, roles, side)
        except InvalidAdapter as error:
            return [*found, Problem("experts", error.message, error.remedy, fatal=True)]
    return found


def _is_role(role: str) -> bool:
    scores = ("MoA_A.expert_score_weight", "MoA_B.expert_score_weight")
    return role in scores or _EXPERT.fullmatch(role) is not None


def ranks(adapter: Adapter) -> Ranks | None:
    return generic.ranks(adapter)


def meaning(adapter: Adapter, *, base_is_initialised: bool = False) -> Meaning:
    """Raises NotMergeable."""
    raise NotMergeable(
        "AdaMix (adamix) cannot be merged into a base: a bottleneck has a nonlinearity within",
        remedy="attach it (ah.attach takes the average of its experts), or write that as one "
        'bottleneck: formats.write(methods.adamix.averaged(adapter), DIR, to="native")',
    )


def averaged(adapter: Adapter) -> Adapter:
    """One bottleneck in the place of each soup; whole tensors stay. Raises InvalidAdapter.

    `formats.write(averaged(adapter), directory, to="native")` keeps it, for `add`.
    """
    modules = {module: _one(module, roles) for module, roles in adapter.modules.items()}
    layers = {m: roles for m, roles in adapter.modules.items() if _is_soup(roles)}
    sides = {m.rpartition(".")[0].endswith("attention") for m in layers}
    config = {f: v for f, v in adapter.config.items() if f != "num_experts" and v is not None}
    placed = {**PLACED, "mh_adapter": True in sides, "output_adapter": False in sides}
    config = {**placed, **config}
    return replace(adapter, method="bottleneck", format="native", config=config, modules=modules)


def _is_soup(roles: Mapping[str, Tensor]) -> bool:
    return any(not role.startswith(REPLACE) for role in roles)


def _one(module: str, roles: Mapping[str, Tensor]) -> dict[str, Tensor]:
    found = {role: tensor for role, tensor in roles.items() if role.startswith(REPLACE)}
    return {**found, **dict(_averages(module, roles))} if _is_soup(roles) else found


def _averages(module: str, roles: Mapping[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
    for side in ("MoA_A", "MoA_B"):
        count = _experts(module, roles, side)
        score = roles.get(f"{side}.expert_score_weight")
        for what in ("weight", "bias"):
            experts = [roles[f"{side}.deepspeed_experts.{k}.{what}"] for k in range(count)]
            yield _AVERAGED[side, what], _average(experts, score)


def _experts(module: str, roles: Mapping[str, Tensor], side: str) -> int:
    """How many there are. Raises InvalidAdapter where one is missing."""
    found = {
        (int(match[2]), match[3])
        for role in roles
        if (match := _EXPERT.fullmatch(role)) and match[1] == side
    }
    count = 1 + max((number for number, _ in found), default=-1)
    lacking = {(k, what) for k in range(count) for what in ("weight", "bias")} - found
    score = roles.get(f"{side}.expert_score_weight")
    said = f"lacks expert {min(lacking)[0]}" if lacking else "" if count else "has no expert"
    if not said and score is not None and score.shape != (count,):
        said = f"has {count} experts, and scores of shape {list(score.shape)}"
    if said:
        raise InvalidAdapter(f"{shown(module)}: {side} {said}", remedy=generic.REMEDY)
    return count


def _average(experts: Sequence[Tensor], score: Tensor | None) -> Computed:
    """Σ softmax(score)_k · expert_k, in fp64 in the order of k, then rounded to fp32.

    Equal scores weigh 1/n, with the same bits everywhere; others hang on the library's exp.
    """
    sources = (*experts, *(() if score is None else (score,)))
    equal = score is None or _are_equal(score)

    def compute() -> Values:
        shares = _shares(len(experts), None if equal else score)
        total = np.zeros(experts[0].shape, np.float64)
        for share, expert in zip(shares, experts, strict=True):
            total += share * fp32(expert).astype(np.float64)
        return total.astype(np.float32)

    return Computed(experts[0].shape, compute, sources, exact=equal)


def _are_equal(score: Tensor) -> bool:
    values = fp32(score)
    return bool((values == values[:1]).all())


def _shares(count: int, score: Tensor | None) -> list[float]:
    if score is None:
        return [1.0 / count] * count
    values = [float(value) for value in fp32(score)]
    if not all(map(math.isfinite, values)):
        raise InvalidAdapter("expert_score_weight is not finite", remedy=generic.REMEDY)
    powers = [math.exp(value - max(values)) for value in values]
    return [power / math.fsum(powers) for power in powers]
