"""TinyLoRA: a handful of trained numbers (Morris et al., https://arxiv.org/abs/2602.04118).

    ΔW = B · (Σ v[i] · P[i]) · A      A: (r, in)   B: (out, r)   P: (u, r, r)   v: (u,)

A and B are of the base's own singular vectors, and saved. P is saved, or drawn by torch with
`projection_seed` + the layer's number, which is not the same everywhere. A group of neighbouring
layers shares a v, more of them the nearer `weight_tying` is to 1. PEFT numbers layers in the order
of the model; of layers that differ in their numbers alone, these tell it, and otherwise no file
does. The sum over i goes in order, in fp32, each product rounded; B times it as in DESIGN §4.
Roles: tinylora_A, tinylora_B, tinylora_P; shared tinylora_v.0, tinylora_v.1, …
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping

import numpy as np

from adapterhub.adapter import Adapter
from adapterhub.errors import NotMergeable
from adapterhub.methods import projections
from adapterhub.methods.computed import Computed, fp32
from adapterhub.methods.generic import idle, problems, ranks, signature
from adapterhub.methods.meaning import LowRank, Meaning, Values
from adapterhub.methods.mergeable import Roles, Settings, adapted, complete, multiplied
from adapterhub.tensorfile import Tensor

VECTOR = "tinylora_v."

__all__ = ["idle", "meaning", "parts", "problems", "ranks", "signature"]


def meaning(adapter: Adapter, *, base_is_initialised: bool = False) -> Meaning:
    return parts(adapter)


def parts(adapter: Adapter) -> Meaning:
    return complete(adapter, _own(adapter))


def _own(adapter: Adapter) -> Iterator[LowRank]:
    settings, numbers = Settings(adapter), _numbers(adapter)
    vectors = _vectors(adapter, settings, len(numbers))
    size = max(1, len(numbers) // len(vectors))
    if len(vectors) > 1 or not all("tinylora_P" in roles for _, roles in adapted(adapter)):
        _refuse_unordered(numbers)
    for module, roles in adapted(adapter):
        vector = vectors[min(numbers[module] // size, len(vectors) - 1)]
        seed = int(settings.get("projection_seed")) + numbers[module]
        b = _scaled(roles, vector, seed)
        yield LowRank(module, roles["tinylora_A"], b, 1.0, "linear", tuple(roles))


def _numbers(adapter: Adapter) -> Mapping[str, int]:
    modules = [module for module, _ in adapted(adapter)]
    modules.sort(key=lambda module: [int(number) for number in re.findall(r"\d+", module)])
    return {module: number for number, module in enumerate(modules)}


def _refuse_unordered(numbers: Mapping[str, int]) -> None:
    if len({re.sub(r"\d+", "*", module) for module in numbers}) > 1:
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
