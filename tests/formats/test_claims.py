"""What configs and names tell of the quantisation of a base."""

from __future__ import annotations

from typing import Any

import pytest

from adapterhub.formats.claims import quantization_named, quantization_of


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        (None, None),
        ("", None),
        ("unsloth/Qwen2.5-3B-Instruct-bnb-4bit", "bitsandbytes 4 bit"),
        ("unsloth/qwen3-8b-unsloth-bnb-4bit", "bitsandbytes 4 bit"),
        ("x/y-bnb-8bit", "bitsandbytes 8 bit"),
        ("TheBloke/Llama-2-7B-GPTQ", "GPTQ"),
        ("x/y-GPTQ-Int4", "GPTQ"),
        ("x/y-AWQ", "AWQ"),
        ("x/y-fp8", "fp8"),
        ("x/y-Q4_K_M", "GGUF"),
        ("mlx-community/gemma-2-9b-it-4bit", "4 bit"),
        ("mlx-community/quantized-gemma-2b", "quantised"),
        ("/data/models/y-int8", "8 bit"),
        ("google/gemma-4-E2B-it-qat-q4_0-unquantized", None),
        ("x/y-4bit-dequantized", None),
        ("Qwen/Qwen2.5-3B", None),
        ("x/awqward", None),
        ("a" * 10_000_000 + "-awq", None),
    ],
)
def test_by_the_name(name: str | None, expected: str | None) -> None:
    assert quantization_named(name) == expected


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ({}, "AWQ"),
        ({"use_qalora": True}, "GPTQ"),
        ({"init_lora_weights": "loftq", "loftq_config": {"loftq_bits": 2}}, "LoftQ 2 bit"),
        ({"init_lora_weights": "LoftQ", "loftq_config": None}, "LoftQ 4 bit"),
        ({"init_lora_weights": "loftq", "loftq_config": {"loftq_bits": "evil"}}, "LoftQ"),
        ({"init_lora_weights": "loftq", "loftq_config": ["evil"]}, "LoftQ"),
    ],
)
def test_by_the_config_first(config: dict[str, Any], expected: str) -> None:
    assert quantization_of(config, "x/y-awq") == expected
