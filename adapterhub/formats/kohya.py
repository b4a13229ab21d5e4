"""LoRA of kohya's sd-scripts: one file, dots of module paths as underscores. Named, not read yet.

    lora_unet_….lora_down.weight [r, in]   .lora_up.weight [out, r]   .alpha []

Source: networks/lora.py of sd-scripts. Its metadata (`ss_*`) is believed only with such names.
"""

from __future__ import annotations

import re

from adapterhub.adapter import Reading
from adapterhub.errors import AdapterHubError
from adapterhub.formats import named
from adapterhub.formats.contents import Content
from adapterhub.formats.sight import Sight

FACTOR = re.compile(
    r"lora_(unet|te\d?|transformer|prior_unet|t5xxl|clip_[lg])_[^.]+\.lora_(down|up)\.weight"
)
_METADATA = ("ss_", "sshs_", "modelspec.")
_LOOSE = re.compile(r"[^.]+\.lora_(down|up)\.weight")
_RANKS = ((r"\.lora_down\.weight", 0), (r"\.lora_up\.weight", 1))
_MOST_ALPHAS = 4096


def recognises(sight: Sight) -> bool:
    return sight.find(is_kohya) is not None


def is_kohya(content: Content) -> bool:
    """Names that end as kohya's, and begin so or have its metadata beside them."""
    said = any(key.startswith(_METADATA) for key in content.metadata)
    pattern = _LOOSE if said else FACTOR
    return any(pattern.fullmatch(name) for name in content.shapes)


def read(sight: Sight, *, allow_pickle: bool) -> Reading:
    found = sight.all(is_kohya)
    outline = named.outline(found[:1], _RANKS, alpha=alpha(found[0]), base=base(found[0]))
    return named.reading(sight, "kohya", "kohya adapters", found, outline, method="lora")


def alpha(content: Content) -> float | None:
    """The value of all `.alpha`, if it is one value and can be read."""
    tensors = [t for n, t in content.tensors.items() if n.endswith(".alpha") and t.nbytes <= 8]
    try:
        return named.single(float(t.read().reshape(-1)[0]) for t in tensors[:_MOST_ALPHAS])
    except (AdapterHubError, ValueError, IndexError):
        return None


def base(content: Content) -> str | None:
    """What the trainer called the model: a file's name, or the version of a family."""
    metadata = content.metadata
    return named.text(metadata.get("ss_sd_model_name")) or named.text(
        metadata.get("ss_base_model_version")
    )
