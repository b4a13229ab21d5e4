"""What kind of model an adapter is for: language, vision, speech, or several at once.

Told by what is certain before what is likely: the model type of a base that fits, the class that
`auto_mapping` names, the paths of the modules, the base that the config names, and last PEFT's
task, which has names for tasks of language only, so that other models borrow them.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

VISION_LANGUAGE = "vision and language"
# By the start of a model type, or of a class's name in lower case; the first that fits counts.
_STARTS = (
    ("speech", ("whisper", "wav2vec", "hubert", "wavlm", "seamless", "speecht5", "bark", "vits")),
    ("speech", ("qwen2audio", "qwen2_audio", "unispeech", "moonshine", "parakeet", "musicgen")),
    (VISION_LANGUAGE, ("clip", "siglip", "paligemma", "llava", "idefics", "smolvlm", "blip")),
    (VISION_LANGUAGE, ("mllama", "pixtral", "florence", "kosmos", "internvl", "colpali")),
    (VISION_LANGUAGE, ("qwen2_vl", "qwen2vl", "qwen2_5_vl", "qwen3_vl", "qwen3vl", "smolvla")),
    ("images", ("unet", "fluxtransformer", "sdtransformer", "stablediffusion", "sd3")),
    ("vision", ("vit", "deit", "beit", "swin", "dinov", "convnext", "resnet", "segformer")),
    ("vision", ("detr", "mobilenet", "mobilevit", "efficientnet", "yolos", "videomae")),
    ("protein", ("esm",)),
)
_PARTS = (
    (VISION_LANGUAGE, ("language_model", "vision_tower", "visual", "multi_modal_projector")),
    ("images", ("unet", "single_transformer_blocks", "transformer_blocks", "down_blocks")),
    ("speech", ("feature_projection", "audio_tower")),
    ("vision", ("patch_embeddings", "patch_embed")),
)
_LANGUAGE_TASKS = ("CAUSAL_LM", "SEQ_2_SEQ_LM", "TOKEN_CLS", "QUESTION_ANS", "SEQ_CLS")


def modality(
    model_types: Iterable[str],
    config: Mapping[str, Any],
    modules: Iterable[str],
    declared: str | None = None,
) -> str | None:
    """In words, or None where nothing tells. `model_types` are those of bases that fit, `declared`
    is that of the base which the adapter names.
    """
    fitting = {_named(kind) or "language" for kind in model_types}
    if len(fitting) == 1:
        return fitting.pop()
    mapping = config.get("auto_mapping")
    parent = mapping.get("base_model_class") if isinstance(mapping, dict) else None
    if isinstance(parent, str) and (found := _named(parent.lower())):
        return found
    if found := _by_paths(modules):
        return found
    if declared is not None:
        return _named(declared) or "language"
    return _by_task(config.get("task_type"))


def _named(name: str) -> str | None:
    return next((what for what, starts in _STARTS if name.startswith(starts)), None)


def _by_paths(modules: Iterable[str]) -> str | None:
    parts = {part for module in modules for part in module.split(".")}
    return next((what for what, names in _PARTS if not parts.isdisjoint(names)), None)


def _by_task(task: Any) -> str | None:
    return "language" if task in _LANGUAGE_TASKS else None
