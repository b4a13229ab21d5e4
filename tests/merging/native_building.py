"""Native adapters for the tests: a config, tensors by their native names, a tiny base."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from adapterhub.tensorfile import ArrayTensor, write_file


def save_native(path: Path, method: str, arrays: Mapping[str, np.ndarray], **fields: Any) -> Path:
    path.mkdir(parents=True, exist_ok=True)
    config = {"adapterhub": 1, "method": method, **fields}
    (path / "adapter_config.json").write_text(json.dumps(config))
    tensors = {name: ArrayTensor(array) for name, array in arrays.items()}
    write_file(path / "adapter_model.safetensors", tensors)
    return path


def changes(
    rng: np.random.Generator, shapes: Mapping[str, tuple[int, ...]]
) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Native tensors of a sparse change, and the same dense, in the formula's orientation."""
    arrays: dict[str, np.ndarray] = {}
    dense: dict[str, np.ndarray] = {}
    for name, shape in shapes.items():
        module, _, parameter = name.rpartition(".")
        size = int(np.prod(shape))
        places = np.sort(rng.choice(size, max(1, size // 4), replace=False)).astype(np.int64)
        values = rng.standard_normal(len(places), np.float32)
        arrays[f"{module}:{parameter}.indices"] = places
        arrays[f"{module}:{parameter}.values"] = values
        dense[name] = np.zeros(size)
        dense[name][places] = values
        dense[name] = dense[name].reshape(shape)
    return arrays, dense
