"""TinyLoRA: a handful of trained numbers (Morris et al., https://arxiv.org/abs/2602.04118).

    ΔW = B · (Σ v[i] · P[i]) · A      A: (r, in)   B: (out, r)   P: (u, r, r)   v: (u,)

A and B are of the base's own singular vectors, and saved. P is saved, or drawn by torch with
`projection_seed` + the layer's number, which is not the same everywhere. A group of neighbouring
layers shares a v, more of them the nearer `weight_tying` is to 1. PEFT numbers layers in the order
of the model; of layers that differ in their numbers alone, these tell it, and otherwise only the
class of the base does. The sum over i goes in order, in fp32, each product rounded; B times it as
in DESIGN §4. Roles: tinylora_A, tinylora_B, tinylora_P; shared tinylora_v.0, tinylora_v.1, …
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace

import numpy as np

from adapterhub.adapter import Adapter
from adapterhub.errors import NotMergeable
from adapterhub.methods import projections
from adapterhub.methods.computed import Computed, fp32
from adapterhub.methods.generic import idle, problems, ranks, signature
from adapterhub.methods.meaning import LowRank, Meaning, Surroundings, Values
from adapterhub.methods.mergeable import (
    Roles,
    Settings,
    adapted,
    complete,
    multiplied,
    replacements,
)
from adapterhub.tensorfile import Tensor

VECTOR = "tinylora_v."

__all__ = ["idle", "meaning", "meaning_over", "parts", "problems", "ranks", "signature"]


def meaning(adapter: Adapter, *, base_is_initialised: bool = False) -> Meaning:
    return complete(adapter, _own(adapter))


def meaning_over(adapter: Adapter, around: Surroundings) -> Meaning:
    """As `meaning`, with the base at hand, whose class may tell the order of the layers."""
    modules = [module for module, _ in adapted(adapter)]
    return complete(adapter, _own(adapter, around.ordered(modules) if _is_mixed(modules) else None))


def parts(adapter: Adapter) -> Meaning:
    """With B in place of what B is multiplied by, which has the same shape."""
    return (*_unscaled(adapter), *replacements(adapter))


def _unscaled(adapter: Adapter) -> Iterator[LowRank]:
    for module, roles in adapted(adapter):
        a, b = roles["tinylora_A"], roles["tinylora_B"]
        yield LowRank(module, a, b, 1.0, "linear", tuple(roles))


def _own(adapter: Adapter, order: Sequence[str] | None = None) -> Iterator[LowRank]:
    settings, numbers = Settings(adapter), _numbers(adapter)
    if order is not None:
        numbers = {module: number for number, module in enumerate(order)}
    vectors = _vectors(adapter, settings, len(numbers))
    size = max(1, len(numbers) // len(vectors))
    is_saved = all("tinylora_P" in roles for _, roles in adapted(adapter))
    if order is None and not (len(vectors) == 1 and is_saved):
        _refuse_unordered(numbers)
    for part, (module, roles) in zip(_unscaled(adapter), adapted(adapter), strict=True):
        vector = vectors[min(numbers[module] // size, len(vectors) - 1)]
        seed = int(settings.get("projection_seed")) + numbers[module]
        yield replace(part, b=_scaled(roles, vector, seed))


def _numbers(adapter: Adapter) -> Mapping[str, int]:
    modules = sorted((module for module, _ in adapted(adapter)), key=_numbers_in)
    return {module: number for number, module in enumerate(modules)}


def _numbers_in(module: str) -> list[tuple[int, str]]:
    """Of any length, so that they compare as numbers do."""
    digits = (found.lstrip("0") for found in re.findall(r"[0-9]+", module))
    return [(len(number), number) for number in digits]


def _is_mixed(modules: Iterable[str]) -> bool:
    """Whether they differ in more than their numbers."""
    return len({re.sub(r"[0-9]+", "*", module) for module in modules}) > 1


def _refuse_unordered(numbers: Mapping[str, int]) -> None:
    if _is_mixed(numbers):
        raise NotMergeable(
            "what a layer shares hangs on the order of the layers in the model, which the files do "
            "not tell for layers of several kinds",
            remedy="merge it with peft: PeftModel.from_pretrained(…).merge_and_unload()",
        )


def _vectors(adapter: Adapter, settings: Settings, layers: int) -> list[Tensor]:
    count = max(1, round(layers * (1.0 - float(settings.get("weight_tying")))))
    found = {r: t for r, t in adapter.modules.get("", {}).items() if r.startswith(VECTOR)}
    if found.keys() != {f"{VECTOR}{number}" for number in range(count)}:
        raise NotMergeable(
            f"{layers} layers with weight_tying={settings.get('weight_tying')} have {count} "
            f"vectors, the weights hold {len(found)}",
            remedy="re-export the adapter with the config that it was trained with",
        )
    return [found[f"{VECTOR}{number}"] for number in range(count)]


def _scaled(roles: Roles, vector: Tensor, seed: int) -> Computed:
    """B · Σ v[i] · P[i]: (out, r)."""
    b, saved = roles["tinylora_B"], roles.get("tinylora_P")

    def compute() -> Values:
        v = fp32(vector)
        p = fp32(saved) if saved else projections.tinylora(seed, len(v), b.shape[1])
        total = np.zeros(p.shape[1:], np.float32)
        for value, matrix in zip(v, p, strict=True):
            total += np.multiply(value, matrix)
        return multiplied(fp32(b), total)

    sources = (b, vector, saved) if saved else (b, vector)
    return Computed(b.shape, compute, sources, exact=saved is not None)
