"""The tensors of one place, as AdapterHub keeps them, into those that a `Bottleneck` takes."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from adapterhub.errors import BaseMismatch
from adapterhub.runtime.arrays import torch_of
from adapterhub.runtime.bottleneck import kronecker_sum
from adapterhub.tensorfile import Tensor

if TYPE_CHECKING:
    import torch

Roles = Mapping[str, Tensor]
SHARED = "shared_parameters:"
_CONTAINER = re.compile(r"(?:\w+_)?adapters:")
_PRUNED = ("_orig", "_mask")  # of torch.nn.utils.prune, and of SparseAdapter's masks
_NAMES = {
    "adapter_up.weight": "up.weight",
    "adapter_up.bias": "up.bias",
    "adapter_norm_before.weight": "before.weight",
    "adapter_norm_before.bias": "before.bias",
    "adapter_norm_after.weight": "after.weight",
    "adapter_norm_after.bias": "after.bias",
    "gate.weight": "gate.weight",
    "gate.bias": "gate.bias",
    "scaling": "scaling",
}


def built(
    roles: Roles, shared: Roles, config: Mapping[str, Any], hidden: int, layer: int
) -> dict[str, torch.Tensor]:
    """Those of a place in `layer`, as the config counts them.

    Raises BaseMismatch with all that is missing, left over, or of another shape.
    """
    held = _unpruned({_CONTAINER.sub("", role, count=1): t for role, t in roles.items()})
    down = f"adapter_down.{1 if config.get('ln_before') else 0}"
    found = _repeats_out(held, bool(config.get("ln_before")))
    if config.get("phm_layer"):
        named = _products(found, shared, down, config.get("phm_dim"))
    else:
        names = {**_NAMES, f"{down}.weight": "down.weight", f"{down}.bias": "down.bias"}
        _refuse(f"{role} is none of a bottleneck's" for role in found if role not in names)
        _refuse(f"{role} is shared, and no phm_layer is there to share it" for role in shared)
        named = {names[role]: tensor for role, tensor in found.items()}
    _check(named, config, hidden)
    width, wanted = named["down.weight"].shape[0], _width(config, hidden, layer)
    if width != (wanted or width):
        _refuse([f"it is {width} wide, reduction_factor in the config makes that {wanted}"])
    return named


def _width(config: Mapping[str, Any], hidden: int, layer: int) -> int | None:
    """What the library makes of `reduction_factor`; None where nothing is said."""
    factor = config.get("reduction_factor")
    if isinstance(factor, Mapping):
        factor = factor.get(str(layer), factor.get("default"))
    return max(1, int(hidden // factor)) if factor else None


def _unpruned(roles: Roles) -> dict[str, torch.Tensor]:
    """Weight ⊙ mask, for each weight that has one (He et al., https://arxiv.org/abs/2210.04284)."""
    found = {}
    for role, tensor in roles.items():
        if role.endswith("_mask"):
            continue
        name = role.removesuffix("_orig")
        value = torch_of(tensor)
        mask = roles.get(f"{name}_mask")
        if mask is not None:
            _refuse([f"{name}_mask: {list(mask.shape)}"] if mask.shape != tensor.shape else [])
            value = value * torch_of(mask)
        found[name] = value
    lost = [r for r in roles if r.endswith("_mask") and r.removesuffix("_mask") not in found]
    _refuse(f"{role} masks nothing" for role in lost)
    return found


def _repeats_out(held: Mapping[str, Any], ln_before: bool) -> dict[str, torch.Tensor]:
    """Without the norm's second name: it is the first of the sequence `adapter_down`, too."""
    found = dict(held)
    for end in ("weight", "bias") if ln_before else ():
        again = found.pop(f"adapter_down.0.{end}", None)
        first = found.setdefault(f"adapter_norm_before.{end}", again)
        if first is None:
            del found[f"adapter_norm_before.{end}"]
        elif again is not None and not first.equal(again):
            _refuse([f"adapter_norm_before.{end} and adapter_down.0.{end} differ"])
    return found


def _products(
    held: Mapping[str, Any], shared: Roles, down: str, dim: int | None
) -> dict[str, torch.Tensor]:
    """Compacter's projections as plain ones; `dim`: of how many products each is the sum."""
    common = {role.removeprefix(SHARED): torch_of(tensor) for role, tensor in shared.items()}
    used: set[str] = set()
    found: dict[str, torch.Tensor] = {}
    for path, name in ((down, "down"), ("adapter_up", "up")):
        own = {r.removeprefix(f"{path}."): t for r, t in held.items() if r.startswith(f"{path}.")}
        used |= {f"{path}.{role}" for role in own}
        rules = _factored({**common, **own}, "phm_rule")
        weights = _factored(own, "W")
        if weights is None:
            weights = _factored(common, f"W_{name}")
        _refuse(
            f"{path} has no {what}"
            for what, value in (("phm_rule", rules), ("W", weights))
            if value is None
        )
        _refuse(f"{path}.{r} is none of Compacter's" for r in own if r not in _PHM)
        if rules.shape[0] != weights.shape[0]:
            _refuse([f"{path}: {rules.shape[0]} rules for {weights.shape[0]} weights"])
        if rules.shape[0] != (dim or rules.shape[0]):
            _refuse([f"{path} is a sum of {rules.shape[0]} products, config says phm_dim={dim}"])
        found[f"{name}.weight"] = kronecker_sum(rules, weights)
        if "b" in own:
            found[f"{name}.bias"] = own["b"]
    rest = {role: tensor for role, tensor in held.items() if role not in used}
    _refuse(f"{role} is none of Compacter's" for role in rest if role not in _NAMES)
    return found | {_NAMES[role]: tensor for role, tensor in rest.items()}


_PHM = frozenset(("b", "W", "W_left", "W_right", "phm_rule", "phm_rule_left", "phm_rule_right"))


def _factored(held: Mapping[str, Any], name: str) -> Any:
    """(n, a, b), whole or as the product of `_left` (n, a, k) and `_right` (n, k, b)."""
    left, right = held.get(f"{name}_left"), held.get(f"{name}_right")
    if left is None or right is None:
        whole = held.get(name)
        _refuse([f"{name}: {list(whole.shape)}"] if whole is not None and whole.ndim != 3 else [])
        return whole
    fits = left.ndim == right.ndim == 3
    if not fits or (left.shape[0], left.shape[2]) != tuple(right.shape[:2]):
        _refuse([f"{name}_left {list(left.shape)} does not go with {list(right.shape)}"])
    return left @ right


def _check(named: Mapping[str, Any], config: Mapping[str, Any], hidden: int) -> None:
    down = named.get("down.weight")
    width = down.shape[0] if down is not None and down.ndim == 2 else 0
    wanted = {
        "down.weight": (width, hidden), "down.bias": (width,),
        "up.weight": (hidden, width), "up.bias": (hidden,),
        "before.weight": (hidden,), "before.bias": (hidden,),
        "after.weight": (hidden,), "after.bias": (hidden,),
        "gate.weight": (1, hidden), "gate.bias": (1,),
        "scaling": (1,) if config.get("scaling") == "learned" else (hidden,),
    }  # fmt: skip
    _refuse(
        f"{name} is {list(tensor.shape)}, {list(wanted[name])} was expected"
        for name, tensor in named.items()
        if tuple(tensor.shape) != wanted[name]
    )
    asked = {
        "before": config.get("ln_before"),
        "after": config.get("ln_after"),
        "gate": config.get("use_gating"),
    }
    needed = {"down.weight", "up.weight"}
    if not config.get("phm_layer") or config.get("phm_bias") is not False:
        needed |= {"down.bias", "up.bias"}
    needed |= {f"{part}.{end}" for part, on in asked.items() if on for end in ("weight", "bias")}
    needed |= {"scaling"} if isinstance(config.get("scaling"), str) else set()
    idle = [name for name in named if name.split(".")[0] in asked and name not in needed]
    idle += ["scaling"] if "scaling" in named and "scaling" not in needed else []
    _refuse(f"there is no {name}" for name in sorted(needed - named.keys()))
    _refuse(f"there is a {name}, which the config does not ask for" for name in idle)


def _refuse(sentences: Any) -> None:
    found = list(sentences)
    if found:
        raise BaseMismatch("a bottleneck's tensors do not fit", details=found)
