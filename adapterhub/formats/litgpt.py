"""litgpt: lit_model.pth.lora beside hyperparameters.yaml. Named, not read yet.

    transformer.h.0.attn.qkv.lora_A   [r · enabled parts, in]

Source: litgpt/lora.py.
"""

from __future__ import annotations

import re

from adapterhub.adapter import Reading
from adapterhub.formats import named
from adapterhub.formats.contents import Content
from adapterhub.formats.sight import Sight

OWN_NAME = "lit_model.pth.lora"
_FACTOR = re.compile(
    r"transformer\.h\.\d+\.(attn\.(qkv|attn|proj)|mlp\.\S+)\.lora_[AB]|lm_head\.lora_[AB]"
)
# litgpt's own names; `transformer.h.` alone is GPT-2's, too.
_OWN = re.compile(r"transformer\.h\.\d+\.(attn\.(qkv|attn|proj)|mlp\.(fc_1|fc_2|fc|proj))\.\S+")


def recognises(sight: Sight) -> bool:
    return sight.find(_is_weights) is not None


def _is_weights(content: Content) -> bool:
    factors = [name for name in content.shapes if _FACTOR.fullmatch(name)]
    if content.name == OWN_NAME:
        return bool(factors) or not content.shapes
    return any(_OWN.fullmatch(name) for name in factors)


def read(sight: Sight, *, allow_pickle: bool) -> Reading:
    found = sight.all(_is_weights)
    outline = named.outline(found, ((r"\.lora_A", 0), (r"\.lora_B", 1)))
    companions = ("hyperparameters.yaml", "model_config.yaml")
    return named.reading(
        sight, "litgpt", "litgpt adapters", found, outline, method="lora", companions=companions
    )
