"""Tiny models of transformers, what a training makes of them, and PEFT's view of the result."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load_file, save_file

SIZES = {"vocab_size": 24, "hidden_size": 16, "num_hidden_layers": 2, "intermediate_size": 20}
DECODER = {**SIZES, "num_attention_heads": 2, "num_key_value_heads": 1}
LLAMA = ("LlamaConfig", {**DECODER, "max_position_embeddings": 32}, "LlamaForCausalLM")
TIED = ("LlamaConfig", {**LLAMA[1], "tie_word_embeddings": True}, "LlamaForCausalLM")
QWEN = ("Qwen2Config", {**LLAMA[1], "tie_word_embeddings": False}, "Qwen2ForCausalLM")
BERT = (
    "BertConfig",
    {**SIZES, "num_attention_heads": 2, "max_position_embeddings": 16},
    "BertModel",
)
LABELLED = ("BertConfig", {**BERT[1], "num_labels": 3}, "BertForTokenClassification")
GPT2 = (
    "GPT2Config",
    {"vocab_size": 24, "n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 16},
    "GPT2LMHeadModel",
)
VIT = (
    "ViTConfig",
    {
        "hidden_size": 16,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 20,
        "image_size": 8,
        "patch_size": 4,
        "num_channels": 3,
        "num_labels": 3,
    },
    "ViTForImageClassification",
)
Kind = tuple[str, Mapping[str, Any], str]
Arrays = dict[str, np.ndarray]


def model(kind: Kind, seed: int = 0) -> Any:
    """Random values in all parameters: norms and biases too."""
    import torch
    import transformers

    torch.manual_seed(seed)
    config, fields, name = kind
    found = getattr(transformers, name)(getattr(transformers, config)(**fields)).eval()
    with torch.no_grad():
        for parameter in found.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.2)
    return found


def saved(kind: Kind, path: Path, **options: Any) -> Path:
    model(kind).save_pretrained(path, **options)
    return path


def tuned(base: Path, path: Path, change: Callable[[Arrays], None]) -> Path:
    """A copy of a checkpoint of one file, changed."""
    path.mkdir()
    arrays = load_file(base / "model.safetensors")
    change(arrays)
    save_file(arrays, path / "model.safetensors", {"format": "pt"})
    (path / "config.json").write_text((base / "config.json").read_text())
    return path


def low(shape: tuple[int, ...], rank: int, seed: int, size: float = 0.3) -> np.ndarray:
    """A random matrix of this rank; of a kernel, flattened so."""
    dice = np.random.default_rng(seed)
    b, a = dice.standard_normal((shape[0], rank)), dice.standard_normal((rank, _rest(shape)))
    return (size * b @ a).reshape(shape).astype(np.float32)


def _rest(shape: tuple[int, ...]) -> int:
    return int(np.prod(shape[1:]))


def nudged(*ends: str, rank: int = 2) -> Callable[[Arrays], None]:
    """Adds a delta of a rank to matrices whose names end so, and noise to vectors."""

    def change(arrays: Arrays) -> None:
        found = [name for name in sorted(arrays) if name.endswith(ends)]
        assert found
        for seed, name in enumerate(found):
            shape = arrays[name].shape
            if len(shape) > 1:
                delta = low(shape, rank, seed)
            else:
                delta = np.random.default_rng(seed).standard_normal(shape).astype(np.float32)
            arrays[name] = arrays[name] + delta

    return change


def peft_of(base: Any, adapter: Path) -> Any:
    """The base with the adapter; every tensor of the file must have found its place."""
    import peft

    live = peft.PeftModel.from_pretrained(base, adapter).eval()
    loaded = peft.get_peft_model_state_dict(live, save_embedding_layers=False)
    file = load_file(adapter / "adapter_model.safetensors")
    for name, values in file.items():
        if name in loaded:
            assert np.array_equal(loaded[name].numpy(), values), name
    return live


def config_of(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((path / "adapter_config.json").read_text())
    return found
