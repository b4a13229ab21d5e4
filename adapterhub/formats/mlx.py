"""mlx-lm: adapter_config.json with its training arguments + adapters.safetensors or .npz. Named.

Factors are transposed against PEFT's: lora_a [in, r], lora_b [r, out]; in a mixture of experts
lora_a [experts, r, in]. Source: mlx_lm/tuner/{utils,lora,dora}.py.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from adapterhub.adapter import BaseClaim, Outline, Reading
from adapterhub.formats import named
from adapterhub.formats.contents import Content
from adapterhub.formats.sight import Sight

_FACTOR = re.compile(r".+\.lora_[ab]")
_CHECKPOINT = re.compile(r"\d{7}_adapters\.(safetensors|npz)")
_RANKS = ((r"\.lora_a", -1), (r"\.lora_b", -2))
_EXPERT_RANKS = ((r"\.lora_a", -2), (r"\.lora_b", -1))


def recognises(sight: Sight) -> bool:
    return is_config(sight.config) or sight.find(_is_weights) is not None


def is_config(config: Mapping[str, Any]) -> bool:
    if "peft_type" in config:
        return False
    layers = "num_layers" in config or "lora_layers" in config
    return "fine_tune_type" in config or ("lora_parameters" in config and layers)


def _is_weights(content: Content) -> bool:
    """`….lora_a` and `….lora_b`, and nothing that torch writes them into."""
    if content.kind not in ("safetensors", "npz"):
        return False
    factors = [name for name in content.shapes if _FACTOR.fullmatch(name)]
    return bool(factors) and 2 * len(factors) >= len(content.shapes)


def read(sight: Sight, *, allow_pickle: bool) -> Reading:
    config = sight.config
    found = [c for c in sight.contents if _is_weights(c) or c.name.startswith("adapters.")]
    final = [c for c in found if not _CHECKPOINT.fullmatch(c.name)] or found[-1:]
    by_module, modules = _ranks(final)
    parameters = config.get("lora_parameters")
    parameters = parameters if isinstance(parameters, dict) else {}
    stated = named.number(parameters.get("rank"))
    rank = named.single(by_module.values()) or stated
    scale = named.number(parameters.get("scale"))
    alpha = scale * rank if scale is not None and rank else None
    outline = Outline(
        by_module,
        modules,
        alpha,
        BaseClaim(name=named.text(config.get("model"))),
        named.elements(final),
        int(stated) if stated else None,
    )
    return named.reading(
        sight, "mlx", "MLX adapters", final, outline, method=_method(config, final), config=config
    )


def _ranks(contents: list[Content]) -> tuple[dict[str, int], tuple[str, ...]]:
    """2-D factors [in, r] and [r, out]; 3-D ones [experts, r, in] and [experts, out, r]."""
    found, modules = named.ranks(contents, _RANKS)
    experts, _ = named.ranks(contents, _EXPERT_RANKS)
    shapes = {name: shape for content in contents for name, shape in content.shapes.items()}
    deep = {module for module in modules if len(shapes.get(f"{module}.lora_a") or ()) == 3}
    return {m: experts.get(m, r) if m in deep else r for m, r in found.items()}, modules


def _method(config: Mapping[str, Any], contents: list[Content]) -> str | None:
    kind = config.get("fine_tune_type")
    names = [name for content in contents for name in content.shapes]
    if kind == "dora" or config.get("use_dora") is True:
        return "dora"
    if kind == "full":
        return None
    return "lora" if kind == "lora" or not names or any(map(_FACTOR.fullmatch, names)) else None
