"""Language, vision, speech: what is certain counts before what is likely."""

from __future__ import annotations

from typing import Any

import pytest

from adapterhub.registry.modality import modality

VISION_LANGUAGE = "vision and language"


@pytest.mark.parametrize(
    ("model_types", "config", "modules", "expected"),
    [
        ((), {}, (), None),
        ((), {"task_type": "CAUSAL_LM"}, (), "language"),
        ((), {"task_type": "FEATURE_EXTRACTION"}, ("encoder.layer.0.q",), None),
        (("llama",), {}, (), "language"),
        (("llama", "qwen2"), {}, (), "language"),
        (("llama", "whisper"), {"task_type": "SEQ_2_SEQ_LM"}, (), "language"),
        (("whisper",), {"task_type": "SEQ_2_SEQ_LM"}, (), "speech"),
        (("vit",), {"task_type": "CAUSAL_LM"}, (), "vision"),
        ((), {"auto_mapping": {"base_model_class": "ViTForImageClassification"}}, (), "vision"),
        ((), {"auto_mapping": {"base_model_class": "WhisperForCTC"}}, ("q",), "speech"),
        ((), {"auto_mapping": {"base_model_class": "BertModel"}}, ("q",), None),
        ((), {"auto_mapping": {"base_model_class": ["ViT"]}}, ("q",), None),
        ((), {"auto_mapping": "ViT"}, ("q",), None),
        ((), {"task_type": "CAUSAL_LM"}, ("vision_tower.layers.0.q",), VISION_LANGUAGE),
        ((), {"task_type": "CAUSAL_LM"}, ("model.language_model.layers.0.q",), VISION_LANGUAGE),
        ((), {}, ("transformer.single_transformer_blocks.12.proj_out",), "images"),
        ((), {"task_type": 7}, ("layers.0.q",), None),
    ],
)
def test_modality(
    model_types: tuple[str, ...], config: dict[str, Any], modules: tuple[str, ...], expected: str
) -> None:
    assert modality(model_types, config, modules) == expected
