"""LoRA adapters of llama.cpp: one .gguf file, told by `general.type`. Named, not read yet."""

from __future__ import annotations

from adapterhub.adapter import Reading
from adapterhub.formats import named
from adapterhub.formats.contents import Content
from adapterhub.formats.sight import Sight

# numpy's shapes: lora_a [r, in], but [vocabulary, r] for the embedding.
_RANKS = (
    (r"(?<=token_embd\.weight)\.lora_a", -1),
    (r"\.lora_a", -2),
    (r"\.lora_b", -1),
)


def recognises(sight: Sight) -> bool:
    return sight.find(_is_adapter) is not None


def _is_adapter(content: Content) -> bool:
    kind = content.metadata.get("general.type")
    return content.kind == "gguf" and kind == "adapter"


def read(sight: Sight, *, allow_pickle: bool) -> Reading:
    found = sight.all(_is_adapter)
    pairs = found[0].metadata
    is_lora = pairs.get("adapter.type") == "lora"
    config = {key: value for key, value in pairs.items() if value is not None}
    outline = named.outline(
        found,
        _RANKS,
        alpha=named.number(pairs.get("adapter.lora.alpha")),
        base=named.text(pairs.get("general.base_model.0.name")),
    )
    title = f"GGUF adapters (architecture {_shown(pairs.get('general.architecture'))})"
    return named.reading(
        sight,
        "gguf",
        title,
        found,
        outline,
        method="lora" if is_lora else None,
        config=config,
    )


def _shown(value: object) -> str:
    return ascii(value[:60]).strip("'") if isinstance(value, str) else "not said"
