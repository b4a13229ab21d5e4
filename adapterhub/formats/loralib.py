"""microsoft/LoRA's loralib: torch.save of `lora_state_dict`, without any config. Named.

    ….c_attn.lora_A   [r · parts, in]      ….c_attn.lora_B   [out, r]

alpha is not stored. Source: loralib/utils.py, layers.py.
"""

from __future__ import annotations

import re

from adapterhub.adapter import Reading
from adapterhub.formats import litgpt, named
from adapterhub.formats.contents import Content
from adapterhub.formats.sight import Sight

# Not OpenDelta's `….lora.lora_A`, AdapterHub's `….loras.<name>.lora_A` or PEFT's own.
_FACTOR = re.compile(r"(?!base_model\.)(?!.*\.loras?\.([^.]+\.)?lora_[AB]$).+\.lora_[AB]")


def recognises(sight: Sight) -> bool:
    if sight.has_config or litgpt.recognises(sight):
        return False
    return sight.find(_is_weights) is not None


def _is_weights(content: Content) -> bool:
    factors = {n: s for n, s in content.shapes.items() if _FACTOR.fullmatch(n)}
    if not factors or any(shape is not None and len(shape) != 2 for shape in factors.values()):
        return False
    return all(name in factors or name.endswith(".bias") for name in content.shapes)


def read(sight: Sight, *, allow_pickle: bool) -> Reading:
    found = sight.all(_is_weights)
    outline = named.outline(found[:1], ((r"\.lora_A", 0), (r"\.lora_B", 1)))
    return named.reading(sight, "loralib", "loralib adapters", found, outline, method="lora")
