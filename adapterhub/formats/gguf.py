"""LoRA adapters of llama.cpp: one .gguf file, told by `general.type`. Named, not read yet."""

from __future__ import annotations

from adapterhub.adapter import Reading
from adapterhub.formats import named, peft_sight
from adapterhub.formats.contents import Content
from adapterhub.formats.sight import MAX_LOOKS, Sight

# numpy's shapes: lora_a [r, in], but [vocabulary, r] for the embedding.
_RANKS = (
    (r"(?<=token_embd\.weight)\.lora_a", -1),
    (r"\.lora_a", -2),
    (r"\.lora_b", -1),
)


def recognises(sight: Sight) -> bool:
    return bool(_found(sight))


def _found(sight: Sight) -> list[Content]:
    """Of files of that name, or of one that was named alone; beside PEFT's weights, those count."""
    if any(sight.has(name) for name in peft_sight.WEIGHTS):
        return []
    names = [n for n in sight.weights if n.endswith(".gguf") or n == sight.file]
    return [c for n in names[:MAX_LOOKS] if _is_adapter(c := sight.content(n))]


def _is_adapter(content: Content) -> bool:
    kind = content.metadata.get("general.type")
    return content.kind == "gguf" and kind == "adapter"


def read(sight: Sight, *, allow_pickle: bool) -> Reading:
    found = _found(sight)
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
