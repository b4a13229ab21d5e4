"""Tiny bases and adapters, written with numpy alone."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from adapterhub import formats
from adapterhub import merging as merge
from adapterhub.adapter import Adapter
from adapterhub.base import Base, open_base
from adapterhub.merging import MergePlan, MergeReport, Options, Source
from adapterhub.tensorfile import ArrayTensor, index_json, lay_out, write_file
from adapterhub.tensorfile import Spec as TensorSpec

BF16 = np.dtype(ml_dtypes.bfloat16)
HIDDEN, INNER, VOCABULARY, LAYERS = 8, 12, 10, 2
Arrays = dict[str, np.ndarray]

LLAMA: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "tie_word_embeddings": False,
    "dtype": "float32",
}
BERT: dict[str, Any] = {"architectures": ["BertModel"], "model_type": "bert", "vocab_size": 10}
GPT2: dict[str, Any] = {"architectures": ["GPT2LMHeadModel"], "model_type": "gpt2"}


def random(seed: int, *shape: int, dtype: Any = np.float32) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape, np.float32).astype(dtype)


def _filled(shapes: Mapping[str, tuple[int, ...]], dtype: Any) -> Arrays:
    return {name: random(i, *shape, dtype=dtype) for i, (name, shape) in enumerate(shapes.items())}


def llama(dtype: Any = np.float32) -> Arrays:
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (VOCABULARY, HIDDEN)}
    for layer in range(LAYERS):
        start = f"model.layers.{layer}"
        for name in "qkvo":
            shapes[f"{start}.self_attn.{name}_proj.weight"] = (HIDDEN, HIDDEN)
        shapes[f"{start}.mlp.up_proj.weight"] = (INNER, HIDDEN)
        shapes[f"{start}.mlp.down_proj.weight"] = (HIDDEN, INNER)
        shapes[f"{start}.input_layernorm.weight"] = (HIDDEN,)
    shapes |= {"model.norm.weight": (HIDDEN,), "lm_head.weight": (VOCABULARY, HIDDEN)}
    return _filled(shapes, dtype)


def bert(prefix: str = "") -> Arrays:
    """A bare BertModel as all-MiniLM has it: a buffer and a pooler, no head."""
    shapes: dict[str, tuple[int, ...]] = {
        "embeddings.LayerNorm.weight": (HIDDEN,),
        "embeddings.LayerNorm.bias": (HIDDEN,),
        "embeddings.word_embeddings.weight": (VOCABULARY, HIDDEN),
        "embeddings.position_embeddings.weight": (6, HIDDEN),
        "embeddings.token_type_embeddings.weight": (2, HIDDEN),
        "encoder.layer.0.attention.self.query.weight": (HIDDEN, HIDDEN),
        "encoder.layer.0.attention.self.query.bias": (HIDDEN,),
        "pooler.dense.weight": (HIDDEN, HIDDEN),
        "pooler.dense.bias": (HIDDEN,),
    }
    arrays = _filled(shapes, np.float32)
    arrays["embeddings.position_ids"] = np.arange(6, dtype=np.int64)[None]
    return {f"{prefix}{name}": array for name, array in arrays.items()}


def gpt2(prefix: str = "") -> Arrays:
    """As the Hub has it without prefix, although its config names the class with a head."""
    shapes: dict[str, tuple[int, ...]] = {
        "wte.weight": (VOCABULARY, HIDDEN),
        "wpe.weight": (6, HIDDEN),
        "h.0.attn.c_attn.weight": (HIDDEN, 3 * HIDDEN),
        "h.0.attn.c_attn.bias": (3 * HIDDEN,),
        "h.0.attn.c_proj.weight": (HIDDEN, HIDDEN),
        "h.0.attn.c_proj.bias": (HIDDEN,),
        "ln_f.weight": (HIDDEN,),
        "ln_f.bias": (HIDDEN,),
    }
    return {f"{prefix}{name}": a for name, a in _filled(shapes, np.float32).items()}


def save_base(
    path: Path, arrays: Mapping[str, np.ndarray], config: Mapping[str, Any], shards: int = 1
) -> Path:
    path.mkdir(parents=True)
    (path / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    (path / "tokenizer.json").write_text('{"version": "1.0"}')
    names = list(arrays)
    if shards == 1:
        write_file(path / "model.safetensors", {n: ArrayTensor(arrays[n]) for n in names})
        return path
    layouts = []
    for number in range(shards):
        file = f"model-{number + 1:05d}-of-{shards:05d}.safetensors"
        mine = {n: ArrayTensor(arrays[n]) for n in names[number::shards]}
        write_file(path / file, mine)
        layouts.append(lay_out(file, [TensorSpec(n, t.dtype, t.shape) for n, t in mine.items()]))
    (path / "model.safetensors.index.json").write_bytes(index_json(layouts))
    return path


def lora_config(**fields: Any) -> dict[str, Any]:
    return {
        "peft_type": "LORA",
        "r": 2,
        "lora_alpha": 4,
        "target_modules": ["q_proj"],
        "base_model_name_or_path": "someone/model",
        "task_type": None,
        **fields,
    }


def pair(
    module: str, out: int, into: int, *, rank: int = 2, seed: int = 100, dtype: Any = np.float32
) -> Arrays:
    start = f"base_model.model.{module}"
    return {
        f"{start}.lora_A.weight": random(seed, rank, into, dtype=dtype),
        f"{start}.lora_B.weight": random(seed + 1, out, rank, dtype=dtype),
    }


def whole(name: str, array: np.ndarray) -> Arrays:
    """A tensor of modules_to_save."""
    return {f"base_model.model.{name}": array}


Q0 = "model.layers.0.self_attn.q_proj"
Q1 = "model.layers.1.self_attn.q_proj"
DOWN = "model.layers.0.mlp.down_proj"


def lora() -> Arrays:
    """Two modules of `llama`."""
    return pair(Q0, HIDDEN, HIDDEN) | pair(DOWN, HIDDEN, INNER)


def qs(**fields: Any) -> Arrays:
    return pair(Q0, HIDDEN, HIDDEN, **fields) | pair(Q1, HIDDEN, HIDDEN, seed=200)


def head(seed: int) -> Arrays:
    return whole("lm_head.weight", random(seed, VOCABULARY, HIDDEN))


def classifier(rows: int) -> Arrays:
    weight = whole("classifier.weight", random(1, rows, HIDDEN))
    return weight | whole("classifier.bias", random(2, rows))


def save_adapter(
    path: Path, arrays: Mapping[str, np.ndarray], labels: Sequence[str] = (), **fields: Any
) -> Path:
    path.mkdir(parents=True)
    (path / "adapter_config.json").write_text(json.dumps(lora_config(**fields)))
    tensors = {name: ArrayTensor(array) for name, array in arrays.items()}
    write_file(path / "adapter_model.safetensors", tensors)
    if labels:
        config = {"id2label": {str(i): label for i, label in enumerate(labels)}}
        (path / "config.json").write_text(json.dumps(config))
    return path


def read_adapter(path: Path) -> Adapter:
    reading = formats.read(path)
    if reading.adapter is None or reading.fatal:
        raise ValueError([problem.sentence() for problem in reading.problems])
    return reading.adapter


def source(path: Path, **fields: Any) -> Source:
    return Source(fields.pop("name", path.name), read_adapter(path), **fields)


def plan_of(base: Path, *adapters: Path | Source, **options: Any) -> MergePlan:
    sources = [a if isinstance(a, Source) else source(a) for a in adapters]
    return merge.plan(opened(base), sources, Options(**options))


def run(base: Path, out: Path, *adapters: Path | Source, **options: Any) -> MergeReport:
    return merge.run(plan_of(base, *adapters, **options), out)


def merged_arrays(base: Path, out: Path, *adapters: Path | Source, **options: Any) -> Arrays:
    run(base, out, *adapters, **options)
    return arrays_of(out)


def contents(directory: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in directory.iterdir()}


def nothing_left(out: Path) -> bool:
    return not [path for path in out.parent.iterdir() if path.name.startswith(out.name)]


def arrays_of(path: Path) -> Arrays:
    return {name: tensor.read() for name, tensor in opened(path).tensors.items()}


def opened(path: Path) -> Base:
    return open_base(path)


def same_bits(one: np.ndarray, other: np.ndarray) -> bool:
    return (one.dtype, one.shape, one.tobytes()) == (other.dtype, other.shape, other.tobytes())
