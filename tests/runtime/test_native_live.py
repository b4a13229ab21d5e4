"""Native adapters on live models: attached they are what is merged, detached nothing is left."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from living import model_of

import adapterhub as ah
from adapterhub.tensorfile import ArrayTensor, write_file

Arrays = Mapping[str, np.ndarray]
Q, DOWN = "model.layers.0.self_attn.q_proj", "model.layers.1.mlp.down_proj"
ATTN, WTE = "transformer.h.0.attn.c_attn", "transformer.wte"
SHAPES = {f"{DOWN}.weight": [16, 24], f"{Q}.bias": [16]}
TURNED = {f"{ATTN}.weight": [48, 16], f"{ATTN}.bias": [48], f"{WTE}.weight": [24, 16]}
SAID = {"algorithm": "fastfood-v1", "seed": 9}


def values(*shape: int) -> np.ndarray:
    return np.random.default_rng(sum(shape)).standard_normal(shape, np.float32)


def sparse(shapes: Mapping[str, list[int]]) -> dict[str, np.ndarray]:
    found = {}
    for name, shape in shapes.items():
        module, _, parameter = name.rpartition(".")
        places = np.arange(1, int(np.prod(shape)), 3)
        found[f"{module}:{parameter}.indices"] = places
        found[f"{module}:{parameter}.values"] = values(len(places))
    return found


def subspace(shapes: Mapping[str, list[int]]) -> dict[str, np.ndarray]:
    found = {":intrinsic_vector": values(12)}
    for name in shapes:
        module, _, parameter = name.rpartition(".")
        found[f"{module}:{parameter}.scale"] = values(1)
    return found


CASES: dict[str, tuple[str, str, Arrays, dict[str, Any]]] = {
    "bitfit": ("llama", "bitfit", {f"{Q}.bias": values(16)}, {}),
    "fishmask": ("llama", "fishmask", sparse(SHAPES), {"shapes": SHAPES}),
    "turned": ("gpt2", "diff_pruning", sparse(TURNED), {"shapes": TURNED}),
    "said": ("llama", "intrinsic_said", subspace(SHAPES), {**SAID, "shapes": SHAPES}),
    "said-turned": ("gpt2", "intrinsic_said", subspace(TURNED), {**SAID, "shapes": TURNED}),
    "krona": (
        "llama",
        "krona",
        {f"{DOWN}:krona_A": values(4, 4), f"{DOWN}:krona_B": values(4, 6)},
        {},
    ),
}


def saved(path: Path, method: str, arrays: Arrays, fields: Mapping[str, Any]) -> Path:
    path.mkdir()
    config = {"adapterhub": 1, "method": method, **fields}
    (path / "adapter_config.json").write_text(json.dumps(config))
    tensors = {name: ArrayTensor(array) for name, array in arrays.items()}
    write_file(path / "adapter_model.safetensors", tensors)
    return path


def state(model: Any) -> dict[str, Any]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("case", CASES)
def test_attached_is_merged_and_detached_is_nothing(tmp_path: Path, case: str, dtype: str) -> None:
    kind, method, arrays, fields = CASES[case]
    model = model_of(kind, dtype)
    model.save_pretrained(tmp_path / "base")
    adapter = saved(tmp_path / "it", method, arrays, fields)
    with ah.open(tmp_path / "home") as registry:
        ah.merge(tmp_path / "base", [adapter], out=tmp_path / "out", registry=registry)
        merged = type(model).from_pretrained(tmp_path / "out", dtype=getattr(torch, dtype))
        before = state(model)
        with ah.attach(model, adapter, registry=registry):
            during = state(model)
        after = state(model)
    expected = state(merged)
    assert all(torch.equal(during[name], expected[name]) for name in expected)
    assert all(torch.equal(before[name], after[name]) for name in before)
    changed = {name for name in before if not torch.equal(before[name], during[name])}
    assert changed >= {n for n in fields.get("shapes", {}) if n in before} and changed
    if kind == "gpt2":
        assert "lm_head.weight" in changed  # it is the embedding
