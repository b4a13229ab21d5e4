"""What the tests of the registry and of the command line share: tiny bases, adapters, homes."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from adapterhub.registry import Registry
from adapterhub.tensorfile import ArrayTensor, read_header, write_file

HIDDEN, VOCABULARY = 8, 10
QUERY = "bert.encoder.layer.0.attention.self.query"
PREFIX = "base_model.model."
Arrays = dict[str, np.ndarray]
CONFIG: dict[str, Any] = {
    "peft_type": "LORA",
    "base_model_name_or_path": "owner/tiny-bert",
    "revision": "abc123",
    "task_type": "FEATURE_EXTRACTION",
    "r": 2,
    "lora_alpha": 4,
    "target_modules": ["query"],
}


def numbers(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape, np.float32)


def save_base(path: Path, seed: int = 0, **fields: Any) -> Path:
    """A bare BertModel with one layer; `fields` go into its config too."""
    shapes: dict[str, tuple[int, ...]] = {
        "embeddings.LayerNorm.weight": (HIDDEN,),
        "embeddings.LayerNorm.bias": (HIDDEN,),
        "embeddings.word_embeddings.weight": (VOCABULARY, HIDDEN),
        "embeddings.position_embeddings.weight": (6, HIDDEN),
        "embeddings.token_type_embeddings.weight": (2, HIDDEN),
    }
    for name in ("self.query", "self.key", "self.value", "output.dense"):
        shapes[f"encoder.layer.0.attention.{name}.weight"] = (HIDDEN, HIDDEN)
        shapes[f"encoder.layer.0.attention.{name}.bias"] = (HIDDEN,)
    arrays = {name: numbers(seed + i, *shape) for i, (name, shape) in enumerate(shapes.items())}
    path.mkdir(parents=True)
    write_tensors(path / "model.safetensors", arrays)
    config = {"architectures": ["BertModel"], "model_type": "bert", "num_hidden_layers": 1}
    (path / "config.json").write_text(json.dumps(config | fields))
    return path


def lora(seed: int = 1, *, rank: int = 2, module: str = QUERY, hidden: int = HIDDEN) -> Arrays:
    return {
        f"{module}.lora_A.weight": numbers(seed, rank, hidden),
        f"{module}.lora_B.weight": numbers(seed + 1000, hidden, rank),
    }


def head(labels: int = 4, seed: int = 7) -> Arrays:
    return {
        "classifier.weight": numbers(seed, labels, HIDDEN),
        "classifier.bias": numbers(seed + 1, labels),
    }


def save_adapter(path: Path, arrays: Mapping[str, np.ndarray] | None = None, **fields: Any) -> Path:
    """A PEFT directory; a field whose value is `...` is left out of its config."""
    path.mkdir(parents=True, exist_ok=True)
    tensors = lora() if arrays is None else arrays
    write_tensors(
        path / "adapter_model.safetensors", {PREFIX + name: a for name, a in tensors.items()}
    )
    said = {key: value for key, value in (CONFIG | fields).items() if value is not ...}
    (path / "adapter_config.json").write_text(json.dumps(said))
    return path


def save_tagger(path: Path, labels: int = 4, **fields: Any) -> Path:
    """An adapter with a token-classification head, as the demo trains one."""
    said = {"task_type": "TOKEN_CLS", "modules_to_save": ["classifier"], **fields}
    return save_adapter(path, lora() | head(labels), **said)


def write_tensors(path: Path, arrays: Mapping[str, np.ndarray]) -> None:
    write_file(path, {name: ArrayTensor(array) for name, array in arrays.items()}, {})


def arrays_of(path: Path) -> Arrays:
    return {name: tensor.read() for name, tensor in read_header(path).tensors.items()}


def tree(home: Path) -> dict[str, bytes]:
    """Every file that means something: all but caches, locks and SQLite's own."""
    aside = ("cache", "locks", "index.db")
    return {
        str(path.relative_to(home)): path.read_bytes()
        for path in sorted(home.rglob("*"))
        if path.is_file() and not path.relative_to(home).parts[0].startswith(aside)
    }


def blob_of(registry: Registry, ref: str, name: str) -> Path:
    entries = registry.show(ref)["manifest"]["files"]
    digest = next(entry["sha256"] for entry in entries if entry["path"] == name)
    return registry.store.blob_path(digest)


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.chmod(0o644)
    path.write_bytes(data)
