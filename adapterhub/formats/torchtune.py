"""torchtune: adapter_0.pt or adapter_model.pt with `….lora_a.weight`. Named, not read yet.

Where PEFT's own weights lie beside it, as its export writes them, those are what is read.
Source: torchtune/training/checkpointing.
"""

from __future__ import annotations

import re

from adapterhub.adapter import Reading
from adapterhub.formats import named, peft_sight
from adapterhub.formats.contents import Content
from adapterhub.formats.sight import Sight

_FACTOR = re.compile(r"(\S+\.)?layers\.\d+\.\S+\.lora_[ab]\.weight|output\.lora_[ab]\.weight")
_RANKS = ((r"\.lora_a\.weight", 0), (r"\.lora_b\.weight", 1))


def recognises(sight: Sight) -> bool:
    if any(sight.has(name) for name in peft_sight.WEIGHTS) or not sight.weights:
        return False
    return sight.find(_is_weights) is not None


def _is_weights(content: Content) -> bool:
    return any(_FACTOR.fullmatch(name) for name in content.shapes)


def read(sight: Sight, *, allow_pickle: bool) -> Reading:
    found = sight.all(_is_weights)
    config = sight.config
    outline = named.outline(
        found,
        _RANKS,
        alpha=named.number(config.get("lora_alpha")),
        base=named.text(config.get("base_model_name_or_path")),
    )
    dora = any(name.endswith(".magnitude") for content in found for name in content.shapes)
    method = "dora" if dora else "lora"
    return named.reading(
        sight, "torchtune", "torchtune adapters", found, outline, method=method, config=config
    )
