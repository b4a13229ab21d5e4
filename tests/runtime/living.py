"""Tiny models, and adapters that PEFT makes for them, with random values throughout."""

from __future__ import annotations

import hashlib
import warnings
from pathlib import Path
from typing import Any

import peft
import torch
import transformers

from adapterhub import api
from adapterhub.registry import Registry

SMALL = {"vocab_size": 24, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
BERT = {**SMALL, "intermediate_size": 24, "max_position_embeddings": 16}
LLAMA = {
    **BERT,
    "num_key_value_heads": 1,
    "tie_word_embeddings": False,
    "attention_bias": True,
}
GPT2 = {"vocab_size": 24, "n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 16}
MIXTRAL = {**LLAMA, "num_local_experts": 3, "num_experts_per_tok": 2}
VIT = {
    "hidden_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 24,
    "image_size": 8,
    "patch_size": 4,
    "num_channels": 3,
}
MODELS: dict[str, tuple[str, dict[str, Any], str]] = {
    "llama": ("LlamaConfig", LLAMA, "LlamaForCausalLM"),
    "gpt2": ("GPT2Config", GPT2, "GPT2LMHeadModel"),
    "mixtral": ("MixtralConfig", MIXTRAL, "MixtralForCausalLM"),
    "tokens": ("BertConfig", BERT, "BertForTokenClassification"),
    "vit": ("ViTConfig", VIT, "ViTForImageClassification"),
}
IDS = [[3, 7, 1, 9, 12]]


def model_of(kind: str, dtype: str = "float32", seed: int = 0, **more: Any) -> Any:
    """In eval mode, every parameter random."""
    config, fields, name = MODELS[kind]
    model = getattr(transformers, name)(getattr(transformers, config)(**{**fields, **more})).eval()
    randomise(model, seed, every=True)
    return model.to(getattr(torch, dtype))


def randomise(model: Any, seed: int, *, every: bool = False) -> None:
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if every or parameter.requires_grad:
                parameter.copy_(torch.randn(parameter.shape, generator=generator) / 4)


def adapter_of(model: Any, config: str, path: Path, seed: int = 1, **fields: Any) -> Any:
    """Saves an adapter for a copy of `model`; gives what PEFT's forward pass answers with it."""
    import copy

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        wrapped = peft.get_peft_model(copy.deepcopy(model), getattr(peft, config)(**fields)).eval()
        randomise(wrapped, seed)
        wrapped.save_pretrained(path)
        return output(wrapped)


def output(model: Any) -> Any:
    if "pixel_values" in (
        model.main_input_name,
        getattr(model, "base_model", model).main_input_name,
    ):
        size = model.config.image_size
        given = torch.linspace(-1, 1, 3 * size * size).reshape(1, 3, size, size)
        given = given.to(model.dtype)
    else:
        given = torch.tensor(IDS)
    with torch.no_grad():
        return model(given).logits


def bits(model: Any) -> dict[str, str]:
    """A digest of every parameter and buffer, and of all that describes them."""
    return {
        name: hashlib.sha256(
            repr((tensor.dtype, tensor.shape)).encode()
            + tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
        ).hexdigest()
        for name, tensor in model.state_dict().items()
    }


LORA = {"r": 4, "lora_alpha": 6}


class Bench:
    """A llama in bf16 with adapters a, b and c, that touch partly the same tensors."""

    FIELDS = (
        {**LORA, "target_modules": ["q_proj", "v_proj"]},
        {**LORA, "r": 2, "target_modules": ["q_proj", "up_proj"]},
        {**LORA, "target_modules": ["v_proj", "up_proj", "o_proj"], "use_rslora": True},
    )

    def __init__(self, root: Path, registry: Registry) -> None:
        self.root, self.registry = root, registry
        made = model_of("llama", "bfloat16")
        made.save_pretrained(root / "base")
        self.model = type(made).from_pretrained(root / "base", dtype="bfloat16").eval()
        self.bare = bits(self.model)
        for number, (name, fields) in enumerate(zip("abc", self.FIELDS, strict=True)):
            adapter_of(self.model, "LoraConfig", root / name, number + 1, **fields)
        self._merged: dict[tuple[tuple[str, float], ...], dict[str, str]] = {(): self.bare}

    def attach(self, name: str, weight: float = 1.0, **more: Any) -> Any:
        return api.attach(
            self.model, self.root / name, weight=weight, registry=self.registry, **more
        )

    def merged(self, *parts: tuple[str, float]) -> dict[str, str]:
        """The bits of the merge of these."""
        if parts not in self._merged:
            out = self.root / f"merged-{len(self._merged)}"
            specs: list[Any] = [(self.root / name, weight) for name, weight in parts]
            api.merge(self.root / "base", specs, out=out, registry=self.registry)
            loaded = type(self.model).from_pretrained(out, dtype="bfloat16")
            self._merged[parts] = bits(loaded)
        return self._merged[parts]
