"""LoRA of diffusers: pytorch_lora_weights.safetensors, in four dialects. Named, not read yet.

    PEFT      transformer.transformer_blocks.0.attn.to_q.lora_A.weight   [r, in]
    lora      unet.….attn1.to_q.lora.down.weight                         [r, in]
    to_q_lora unet.….attn1.processor.to_q_lora.down.weight               [r, in]
    text      text_encoder.….self_attn.q_proj.lora_linear_layer.down.weight

Source: diffusers/loaders/lora_pipeline.py, utils/state_dict_utils.py. Metadata is not asked: files
of other trainers in these names bring that of other models.
"""

from __future__ import annotations

import json
import re

from adapterhub.adapter import Reading
from adapterhub.formats import named
from adapterhub.formats.contents import Content
from adapterhub.formats.sight import Sight

_OWN_NAME = re.compile(r"pytorch_lora_weights\.(safetensors|bin)")
_ROOT = r"(unet|text_encoder(_[23])?|transformer(?=\.([\w]+\.)*\w*blocks\.))\.(\S+\.)?"
_DIALECTS = {
    "to_q_lora": re.compile(r"(\S+\.)?to_(q|k|v|out)_lora\.(down|up)\.weight"),
    "lora_linear_layer": re.compile(_ROOT + r"lora_linear_layer\.(down|up)\.weight"),
    "lora.down": re.compile(_ROOT + r"lora\.(down|up)\.weight"),
    "lora_A": re.compile(_ROOT + r"lora_[AB](\.\w+)?\.weight"),
}
_BESIDE = re.compile(_ROOT + r"(alpha|lora_magnitude_vector(\.weight)?|lora_[AB](\.\w+)?\.bias)")
_RANKS = (
    (r"_lora\.down\.weight|\.lora_linear_layer\.down\.weight|\.lora\.down\.weight", 0),
    (r"\.lora_A(\.\w+)?\.weight", 0),
)
_MOST_METADATA = 1024 * 1024


def recognises(sight: Sight) -> bool:
    return sight.find(is_diffusers) is not None


def is_diffusers(content: Content) -> bool:
    """Every name is diffusers' own; under its own file name, some are enough."""
    if not content.shapes:
        return _OWN_NAME.fullmatch(content.name) is not None
    own = [dialect_of(name) for name in content.shapes]
    named_so = _OWN_NAME.fullmatch(content.name) is not None
    return (
        any(own)
        if named_so
        else any(own)
        and all(
            own_name or _BESIDE.fullmatch(name)
            for own_name, name in zip(own, content.shapes, strict=True)
        )
    )


def dialect_of(name: str) -> str:
    """One of the four, or "" for a name that is none of diffusers'."""
    return next((d for d, pattern in _DIALECTS.items() if pattern.fullmatch(name)), "")


def read(sight: Sight, *, allow_pickle: bool) -> Reading:
    found = sight.all(is_diffusers)
    dialects = sorted({d for c in found for name in c.shapes if (d := dialect_of(name))})
    outline = named.outline(found[:1], _RANKS, alpha=_alpha(found[0]))
    title = f"diffusers adapters ({', '.join(dialects) or 'of this name'})"
    method = "lora" if dialects else None
    return named.reading(sight, "diffusers", title, found, outline, method=method)


def _alpha(content: Content) -> float | None:
    """lora_alpha of the metadata that diffusers itself writes, if all parts have the same."""
    text = content.metadata.get("lora_adapter_metadata")
    if not isinstance(text, str) or len(text) > _MOST_METADATA:
        return None
    try:
        said = json.loads(text)
    except (ValueError, RecursionError):
        return None
    said = said if isinstance(said, dict) else {}
    values = [named.number(v) for k, v in said.items() if k.endswith("lora_alpha")]
    return named.single(value for value in values if value is not None)
