"""LoRAs for the tests of composing, and what they mean, in dense fp64."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

from adapterhub import composing
from adapterhub.adapter import Adapter
from adapterhub.composing import Input, Options
from adapterhub.formats import read
from adapterhub.formats.roots import adapter_root
from adapterhub.methods import LowRank, Replacement, method

Q, V = "model.layers.0.self_attn.q_proj", "model.layers.1.self_attn.v_proj"
SIZES = {Q: (12, 8), V: (6, 8)}


def lora(path: Path, seed: int, modules: Any = (Q, V), rank: int = 3, **fields: Any) -> Path:
    dice = np.random.default_rng(seed)
    tensors = {}
    for module in modules:
        out, into = SIZES[module]
        for role, shape in (("lora_A", (rank, into)), ("lora_B", (out, rank))):
            name = f"base_model.model.{module}.{role}.weight"
            tensors[name] = dice.standard_normal(shape).astype(np.float32)
    config = {
        "peft_type": "LORA",
        "base_model_name_or_path": "owner/base",
        "r": rank,
        "lora_alpha": 6,
        "target_modules": sorted({module.rpartition(".")[2] for module in modules}),
        **fields,
    }
    path.mkdir(parents=True)
    (path / "adapter_config.json").write_text(json.dumps(config))
    save_file(tensors, path / "adapter_model.safetensors", {"format": "pt"})
    return path


def given(path: Path, weight: float = 1.0) -> Input:
    adapter = read(path).adapter
    assert adapter is not None
    return Input(path.name, adapter, weight, root=adapter_root(adapter))


def composed(inputs: list[Input], **options: Any) -> tuple[Adapter, composing.Report]:
    plan = composing.plan(inputs, Options(**options))
    done = composing.run(plan)
    return composing.adapter_of(plan, done), composing.report(plan, done)


def deltas(adapter: Adapter) -> dict[str, Any]:
    """scale·B·A of each module in fp64, by its meaning; heads apart."""
    found = {}
    for part in method("lora").implementation.meaning(adapter):
        if isinstance(part, Replacement):
            continue
        assert isinstance(part, LowRank)
        b, a = (np.asarray(t.read(), np.float64) for t in (part.b, part.a))
        found[part.module] = part.scale * b @ a
    return found


def dense(*inputs: Input) -> dict[str, Any]:
    total: dict[str, Any] = {}
    for each in inputs:
        for module, delta in deltas(each.adapter).items():
            total[module] = total.get(module, 0) + each.weight * delta
    return total


def assert_close(found: dict[str, Any], expected: dict[str, Any], tolerance: float = 1e-6) -> None:
    assert found.keys() == expected.keys()
    for module, delta in found.items():
        size = np.linalg.norm(expected[module]) or 1.0
        assert np.linalg.norm(delta - expected[module]) <= tolerance * size
