"""Llamas of a given size and LoRA adapters for them: true names and shapes, random values.

Written with numpy alone, at the speed of the disk; transformers and PEFT load what is written.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from adapterhub.tensorfile import (
    ArrayTensor,
    ShardLayout,
    Spec,
    index_json,
    plan_shards,
    write_file,
)

HEAD = 64
SHARDS = 4
# Up to so many parameters: hidden size, layers, vocabulary. The inner size is made to fit.
_SIZES = (
    (5e6, 64, 4, 1_000),
    (3e7, 256, 6, 4_000),
    (1e8, 512, 8, 8_000),
    (1e9, 1024, 24, 32_000),
    (2.5e9, 2048, 24, 32_000),
    (5e9, 3072, 28, 32_000),
    (math.inf, 4096, 32, 32_000),
)


@dataclass(frozen=True)
class Llama:
    """Keys and values have a quarter of the heads; embedding and head are not tied."""

    hidden: int
    inner: int
    layers: int
    vocabulary: int

    @property
    def heads(self) -> int:
        return self.hidden // HEAD

    @property
    def kv_heads(self) -> int:
        return max(1, self.heads // 4)

    @property
    def linears(self) -> dict[str, tuple[int, int]]:
        """Module path within a layer → (out, in)."""
        kv = self.kv_heads * HEAD
        return {
            "self_attn.q_proj": (self.hidden, self.hidden),
            "self_attn.k_proj": (kv, self.hidden),
            "self_attn.v_proj": (kv, self.hidden),
            "self_attn.o_proj": (self.hidden, self.hidden),
            "mlp.gate_proj": (self.inner, self.hidden),
            "mlp.up_proj": (self.inner, self.hidden),
            "mlp.down_proj": (self.hidden, self.inner),
        }

    @property
    def specs(self) -> list[Spec]:
        """Every tensor in the order of the model, bf16."""
        table = (self.vocabulary, self.hidden)
        shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": table}
        for layer in range(self.layers):
            start = f"model.layers.{layer}"
            shapes |= {f"{start}.{name}.weight": shape for name, shape in self.linears.items()}
            for norm in ("input_layernorm", "post_attention_layernorm"):
                shapes[f"{start}.{norm}.weight"] = (self.hidden,)
        shapes |= {"model.norm.weight": (self.hidden,), "lm_head.weight": table}
        return [Spec(name, "BF16", shape) for name, shape in shapes.items()]

    @property
    def nbytes(self) -> int:
        return sum(spec.nbytes for spec in self.specs)

    @property
    def parameters(self) -> int:
        return self.nbytes // 2

    @property
    def config(self) -> dict[str, Any]:
        return {
            "architectures": ["LlamaForCausalLM"],
            "model_type": "llama",
            "hidden_size": self.hidden,
            "intermediate_size": self.inner,
            "num_hidden_layers": self.layers,
            "num_attention_heads": self.heads,
            "num_key_value_heads": self.kv_heads,
            "head_dim": HEAD,
            "vocab_size": self.vocabulary,
            "max_position_embeddings": 4096,
            "rms_norm_eps": 1e-5,
            "tie_word_embeddings": False,
            "bos_token_id": 1,
            "eos_token_id": 2,
            "dtype": "bfloat16",
        }


def llama_of(parameters: float) -> Llama:
    """The Llama whose size comes closest, with an inner size that is a multiple of 64."""
    _, hidden, layers, vocabulary = next(size for size in _SIZES if parameters <= size[0])
    least = Llama(hidden, 64, layers, vocabulary)
    per_step = 64 * 3 * hidden * layers
    return Llama(
        hidden,
        64 + 64 * max(0, round((parameters - least.parameters) / per_step)),
        layers,
        vocabulary,
    )


def write_base(directory: Path, model: Llama, *, seed: int = 0) -> int:
    """A checkpoint of 4 shards (fewer if its largest tensor forbids it); returns their number."""
    directory.mkdir(parents=True)
    layouts = _shards(model.specs)
    for number, layout in enumerate(layouts):
        tensors = {
            spec.name: _RandomBits(spec.shape, spec.nbytes, (seed, number, place))
            for place, spec in enumerate(layout.specs)
        }
        write_file(directory / layout.filename, tensors)
    if len(layouts) > 1:
        (directory / "model.safetensors.index.json").write_bytes(index_json(layouts))
    (directory / "config.json").write_text(json.dumps(model.config, indent=2) + "\n")
    return len(layouts)


def write_adapter(directory: Path, model: Llama, rank: int, *, seed: int) -> None:
    """A PEFT LoRA on all linear layers, fp32; neither A nor B is zero."""
    directory.mkdir(parents=True)
    rng = np.random.default_rng(seed)
    tensors: dict[str, ArrayTensor] = {}
    for layer in range(model.layers):
        for name, (out, into) in model.linears.items():
            start = f"base_model.model.model.layers.{layer}.{name}"
            a = rng.standard_normal((rank, into), np.float32) / np.float32(math.sqrt(into))
            b = rng.standard_normal((out, rank), np.float32) / np.float32(100)
            tensors[f"{start}.lora_A.weight"] = ArrayTensor(a)
            tensors[f"{start}.lora_B.weight"] = ArrayTensor(b)
    write_file(directory / "adapter_model.safetensors", tensors)
    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": "random-llama",
        "r": rank,
        "lora_alpha": 2 * rank,
        "target_modules": [name.rpartition(".")[2] for name in model.linears],
    }
    (directory / "adapter_config.json").write_text(json.dumps(config, indent=2) + "\n")


def _shards(specs: list[Spec]) -> tuple[ShardLayout, ...]:
    """As even as the sizes of the tensors allow."""
    total = sum(spec.nbytes for spec in specs)
    limit = -(-total // SHARDS)
    while len(layouts := plan_shards(specs, max_shard_bytes=limit)) > SHARDS:
        limit += limit // 64 + 1
    return layouts


@dataclass(frozen=True)
class _RandomBits:
    """A bf16 tensor with values of both signs from 0.008 to 0.125; drawn as it is written."""

    shape: tuple[int, ...]
    nbytes: int
    seed: tuple[int, ...]
    dtype: str = "BF16"

    def read(self) -> np.ndarray[Any, np.dtype[Any]]:
        raw = np.frombuffer(b"".join(self.pieces()), ml_dtypes.bfloat16)
        return raw.reshape(self.shape).copy()

    def pieces(self, size: int = 1 << 20) -> Iterator[memoryview]:
        rng = np.random.Generator(np.random.SFC64(self.seed))
        for start in range(0, self.nbytes, size):
            length = min(size, self.nbytes - start)
            words = rng.integers(0, 1 << 64, -(-length // 8), np.uint64)
            # Sign, the two lowest bits of the exponent and the mantissa are random.
            words &= np.uint64(0x81FF_81FF_81FF_81FF)
            words |= np.uint64(0x3C00_3C00_3C00_3C00)
            yield words.view(np.uint8).data[:length]
