"""Ladder side-tuning: a narrow network beside the model (Sung et al.,
https://arxiv.org/abs/2206.06522).

    g₀ = D₀ · h₀                                   h₀: (…, d), what the first layer is given
    zᵢ = μᵢ · gᵢ₋₁ + (1 − μᵢ) · Dᵢ · hᵢ            hᵢ: what layer i of the model gives
    gᵢ = layerᵢ(zᵢ)                                μᵢ = sigmoid(αᵢ / T), T = 0.1
    y  = U · norm(g_N)                             in the place of what the model gives its head

Side layers are those of the model's own class at a width of w = d / reduction_factor, with as many
heads, each as much narrower. Layers that the ladder leaves out are passed by. With `last_gate` α,
y is μ·y + (1 − μ)·h of the model. Of the original's variants this is its learnable gate; weights
made by pruning are trained weights like others.

Roles of a layer's module: `down.weight` (w, d) and `down.bias`, Dᵢ; `gate` (1,), αᵢ; and
`layer.<parameter>`, those of the side layer. Of no module: `first_down.weight`, `first_down.bias`,
`norm.weight` (w,), `norm.bias` (of a LayerNorm; an RMSNorm has none), `up.weight` (d, w),
`up.bias`, `last_gate` (1,). Biases and `last_gate` may be missing. `output` of the config is the
module whose output y takes the place of.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from adapterhub.adapter import REPLACE, Adapter, Problem
from adapterhub.methods import generic
from adapterhub.methods.generic import idle, meaning, parts, ranks
from adapterhub.methods.signature import Signature
from adapterhub.tensorfile import Tensor, shown

__all__ = ["idle", "meaning", "parts", "problems", "ranks", "signature"]
LAYER = "layer."
_SHARED = {
    "first_down.weight": "wd",
    "first_down.bias": "w",
    "norm.weight": "w",
    "norm.bias": "w",
    "up.weight": "dw",
    "up.bias": "d",
    "last_gate": "1",
}
_OWN = {"down.weight": "wd", "down.bias": "w", "gate": "1"}
_MAY_LACK = ("first_down.bias", "norm.bias", "up.bias", "last_gate", "down.bias")


def problems(adapter: Adapter) -> list[Problem]:
    found = generic.problems(adapter)
    if not any(problem.fatal for problem in found):
        found += [Problem("ladder", text, generic.REMEDY, True) for text in _wrong(adapter)]
    return found


def rungs(adapter: Adapter) -> list[str]:
    """The layers that have a side layer."""
    return [
        module
        for module, roles in adapter.modules.items()
        if module and any(not role.startswith(REPLACE) for role in roles)
    ]


def _wrong(adapter: Adapter) -> Iterator[str]:
    shared = adapter.modules.get("", {})
    yield from _of_one("", shared, _SHARED, {})
    if "first_down.weight" not in shared:
        return
    if len(shared["first_down.weight"].shape) != 2:
        yield f"first_down.weight is {list(shared['first_down.weight'].shape)}, expected a matrix"
        return
    width, model = shared["first_down.weight"].shape
    factor = adapter.config["reduction_factor"]
    if width * factor != model:
        yield f"first_down.weight is {[width, model]}, and reduction_factor {factor}"
    sizes = {"w": width, "d": model}
    yield from _of_one("", shared, _SHARED, sizes)
    layers = rungs(adapter)
    if not layers:
        yield "the weights hold no side layer"
    for module in layers:
        own = {r: t for r, t in adapter.modules[module].items() if not r.startswith(REPLACE)}
        plain = {role: t for role, t in own.items() if not role.startswith(LAYER)}
        yield from _of_one(module, plain, _OWN, sizes)
        if len(plain) == len(own):
            yield f"{shown(module)} has no parameters of a side layer"


def _of_one(
    module: str, roles: Mapping[str, Tensor], known: Mapping[str, str], sizes: Mapping[str, int]
) -> Iterator[str]:
    where = f"{shown(module)}: " if module else ""
    if not sizes:
        for role in known.keys() - roles.keys() - set(_MAY_LACK):
            yield f"{where}{role} is missing"
        for role in roles.keys() - known.keys():
            yield f"{where}{shown(role)} is no tensor of a ladder"
        return
    if module:
        yield from _of_one(module, roles, known, {})
    for role, tensor in roles.items():
        wanted = tuple(1 if d == "1" else sizes[d] for d in known.get(role, ""))
        if role in known and tensor.shape != wanted:
            yield f"{where}{role} is {list(tensor.shape)}, expected {list(wanted)}"


def signature(adapter: Adapter) -> Signature:
    """The width of the model."""
    first = adapter.modules.get("", {}).get("first_down.weight")
    width = first.shape[1] if first is not None and len(first.shape) == 2 else None
    return Signature(whole=generic.signature(adapter).whole, width=width)
