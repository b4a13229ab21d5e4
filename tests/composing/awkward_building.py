"""Adapters whose deltas are awkward: equal magnitudes, exact zeros, low ranks, every layout."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
from safetensors.numpy import load_file, save_file

Dense = np.ndarray[Any, np.dtype[Any]]
LINEAR, OTHER = "model.layers.0.self_attn.q_proj", "model.layers.1.mlp.up_proj"
WORDS, IMAGE = "model.embed_tokens", "model.vision.patch"
EXPERTS, COUNT = "model.layers.0.mlp.experts", 3
# out and in of the formula; a convolution's kernel is (2, 3)
SIZES = {LINEAR: (10, 8), OTHER: (6, 9), WORDS: (7, 12), IMAGE: (6, 4 * 6), EXPERTS: (5, 7)}
KERNEL = (2, 3)


@dataclass(frozen=True)
class Made:
    """A directory, and what its adapter adds by the definition: each matrix, by name, in fp64."""

    path: Path
    deltas: Mapping[str, Dense]


def values(dice: np.random.Generator, kind: str, shape: tuple[int, ...]) -> Dense:
    """`kind`: "plain"; "equal", small whole numbers, so that products are exact and many of one
    magnitude; "sparse", of which half are 0; "skewed", of many orders of magnitude."""
    if kind == "equal":
        return dice.integers(-2, 3, shape).astype(np.float32)
    found = dice.standard_normal(shape)
    if kind == "sparse":
        found = np.round(found) * (dice.random(shape) < 0.5)
    if kind == "skewed":
        found *= np.exp(2 * dice.standard_normal(shape))
    return found.astype(np.float32)


def adapter(
    path: Path,
    seed: int,
    kind: str,
    *,
    rank: int = 4,
    rslora: bool = False,
    without: tuple[str, ...] = (),
    zero: bool = False,
    dtype: Any = np.float32,
) -> Made:
    """`without`: modules it leaves alone. `zero`: as training begins. `dtype`: as it is stored."""
    dice = np.random.default_rng(seed)
    tensors: dict[str, Dense] = {}
    deltas: dict[str, Dense] = {}
    alpha = 2 * rank if not rslora else 4
    scale = alpha / (np.sqrt(rank) if rslora else rank)
    for module in [m for m in SIZES if m not in without]:
        out, into = SIZES[module]
        count = COUNT if module == EXPERTS else 1
        a = [values(dice, kind, (rank, into)).astype(dtype) for _ in range(count)]
        b = [values(dice, kind, (out, rank)).astype(dtype) for _ in range(count)]
        if kind != "plain":
            for one in b:
                one[:, -1] = one[:, 0]  # a rank less
                one[0] = 0
        if zero:
            b = [0 * one for one in b]
        for number, (one, two) in enumerate(zip(b, a, strict=True)):
            name = module if count == 1 else f"{module}.{number}"
            deltas[name] = scale * one.astype(np.float64) @ two.astype(np.float64)
        tensors |= _spelled(module, a, b)
    config = {
        "peft_type": "LORA",
        "base_model_name_or_path": "owner/base",
        "r": rank,
        "lora_alpha": alpha,
        "use_rslora": rslora,
        "target_modules": sorted(
            m.rpartition(".")[2] for m in SIZES if m != EXPERTS and m not in without
        ),
        "target_parameters": [] if EXPERTS in without else ["mlp.experts.down_proj"],
        "peft_version": "0.21.2",
    }
    path.mkdir(parents=True)
    (path / "adapter_config.json").write_text(json.dumps(config))
    save_file(tensors, path / "adapter_model.safetensors", {"format": "pt"})
    return Made(path, deltas)


def _spelled(module: str, a: list[Dense], b: list[Dense]) -> dict[str, Dense]:
    start = f"base_model.model.{module}"
    if module == WORDS:
        return {f"{start}.lora_embedding_A": a[0], f"{start}.lora_embedding_B": b[0]}
    if module == EXPERTS:
        one, two = np.concatenate(a), np.stack(b, 2).reshape(len(b[0]), -1)
    elif module == IMAGE:
        one, two = a[0].reshape(len(a[0]), -1, *KERNEL), b[0][:, :, None, None]
    else:
        one, two = a[0], b[0]
    return {f"{start}.lora_A.weight": one, f"{start}.lora_B.weight": np.ascontiguousarray(two)}


def read(path: Path) -> dict[str, Dense]:
    """As `Made.deltas`, of a result: taken apart here, by no code of the package."""
    tensors = load_file(path / "adapter_model.safetensors")
    config = json.loads((path / "adapter_config.json").read_text())
    assert not config["use_rslora"] and all(t.dtype == np.float32 for t in tensors.values())
    found: dict[str, Dense] = {}
    for module in SIZES:
        a, b = _factors(tensors, f"base_model.model.{module}.lora_")
        if a is None or b is None:
            continue
        key = f"{module}.down_proj" if module == EXPERTS else module
        rank, alpha = _of(config, "rank", "r", key), _of(config, "alpha", "lora_alpha", key)
        a, b = a.astype(np.float64), b.astype(np.float64)
        if module == EXPERTS:
            b = b.reshape(len(b), -1, COUNT)
            for number in range(COUNT):
                part = a[number * rank : (number + 1) * rank]
                found[f"{module}.{number}"] = alpha / rank * b[:, :, number] @ part
        else:
            found[module] = alpha / rank * b.reshape(len(b), -1) @ a.reshape(len(a), -1)
    return found


def _factors(tensors: Mapping[str, Dense], start: str) -> tuple[Dense | None, Dense | None]:
    names = ("A.weight", "B.weight"), ("embedding_A", "embedding_B")
    one, two = next((pair for pair in names if f"{start}{pair[0]}" in tensors), names[0])
    return tensors.get(f"{start}{one}"), tensors.get(f"{start}{two}")


def _of(config: Mapping[str, Any], pattern: str, field: str, module: str) -> Any:
    own = {k.replace("\\", "").lstrip("^"): v for k, v in config[f"{pattern}_pattern"].items()}
    return own.get(module, config[field])


BF16 = ml_dtypes.bfloat16
