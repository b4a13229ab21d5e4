"""Merges of experts in every layout, against the einsum of PEFT's ParamWrapper in fp64."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from building import Arrays, arrays_of, opened, random, read_adapter, save_adapter, save_base

from adapterhub import merging as merge
from adapterhub.merging import Options, Source
from adapterhub.tensorfile import FileTensor

EXPERTS, INNER, HIDDEN, RANK = 5, 12, 16, 3
MODULE = "model.layers.0.mlp.experts"
CONFIG = {"model_type": "mixtral", "architectures": ["MixtralForCausalLM"]}


def fused(dtype: Any) -> Arrays:
    """As in memory: `gate_up_proj` is `w1` above `w3`, `down_proj` is `w2`."""
    return {
        f"{MODULE}.gate_up_proj": random(1, EXPERTS, 2 * INNER, HIDDEN, dtype=dtype),
        f"{MODULE}.down_proj": random(2, EXPERTS, HIDDEN, INNER, dtype=dtype),
        "model.norm.weight": random(3, HIDDEN, dtype=dtype),
    }


def apart(arrays: Arrays) -> Arrays:
    """The same, with a tensor for each expert."""
    start = "model.layers.0.block_sparse_moe.experts"
    gate_up, down = arrays[f"{MODULE}.gate_up_proj"], arrays[f"{MODULE}.down_proj"]
    found = {"model.norm.weight": arrays["model.norm.weight"]}
    for expert in reversed(range(EXPERTS)):
        found[f"{start}.{expert}.w2.weight"] = down[expert]
        found[f"{start}.{expert}.w1.weight"] = gate_up[expert, :INNER]
        found[f"{start}.{expert}.w3.weight"] = gate_up[expert, INNER:]
    return found


def adapter(path: Path, seed: int, version: str) -> Source:
    """Factors in a file, in the orientation that this version of PEFT gives them."""
    sizes = {"gate_up_proj": (2 * INNER, HIDDEN), "down_proj": (HIDDEN, INNER)}
    arrays = {}
    for number, (name, (rows, columns)) in enumerate(sizes.items()):
        out, into = (columns, rows) if version < "0.19" else (rows, columns)
        start = f"base_model.model.{MODULE}.{'base_layer.' if name == 'gate_up_proj' else ''}"
        arrays[f"{start}lora_A.weight"] = random(seed + number, RANK * EXPERTS, into)
        arrays[f"{start}lora_B.weight"] = random(seed + number + 50, out, RANK * EXPERTS)
    config: dict[str, Any] = {"r": RANK, "lora_alpha": 3 * RANK, "target_modules": []}
    config |= {"peft_version": version, "target_parameters": [f"mlp.experts.{n}" for n in sizes]}
    return Source(path.name, read_adapter(save_adapter(path, arrays, **config)), 0.5)


def want(arrays: Arrays, sources: list[Source]) -> dict[str, np.ndarray]:
    found = {name: array.astype(np.float64) for name, array in arrays.items()}
    for source in sources:
        swapped = source.adapter.config["peft_version"] < "0.19"
        roles = source.adapter.modules[MODULE]
        for name, level in (("gate_up_proj", "base_layer."), ("down_proj", "")):
            a, b = (roles[f"{level}lora_{role}"].read().astype(np.float64) for role in "AB")
            a, b = a.reshape(EXPERTS, -1, a.shape[1]), b.reshape(b.shape[0], -1, EXPERTS)
            spelling = "ore,eri->eio" if swapped else "ore,eri->eoi"
            found[f"{MODULE}.{name}"] += 1.5 * np.einsum(spelling, b, a)
    return found


@pytest.mark.parametrize("versions", [["0.21.2"], ["0.18.0"], ["0.21.2", "0.20.0"]])
@pytest.mark.parametrize("layout", ["fused", "apart"])
def test_every_expert_gets_its_own_product(
    tmp_path: Path, layout: str, versions: list[str]
) -> None:
    arrays = fused(np.float32)
    base = save_base(tmp_path / "base", arrays if layout == "fused" else apart(arrays), CONFIG)
    sources = [adapter(tmp_path / f"a{n}", 10 * n, v) for n, v in enumerate(versions)]
    plan = merge.plan(opened(base), sources, Options())
    merge.run(plan, tmp_path / "out")
    expected = want(arrays, sources)
    expected = expected if layout == "fused" else apart(expected)
    got = arrays_of(tmp_path / "out")
    assert got.keys() == expected.keys()
    for name, array in expected.items():
        np.testing.assert_allclose(got[name], array, rtol=0, atol=2e-5)


def test_both_layouts_hold_the_same_bits(tmp_path: Path) -> None:
    arrays = fused("bfloat16")
    source = adapter(tmp_path / "a", 10, "0.21.2")
    found = {}
    for layout, stored in (("fused", arrays), ("apart", apart(arrays))):
        base = save_base(tmp_path / layout, stored, CONFIG)
        merge.run(merge.plan(opened(base), [source], Options()), tmp_path / f"{layout}-out")
        found[layout] = arrays_of(tmp_path / f"{layout}-out")
    again = apart(found["fused"])
    assert again.keys() == found["apart"].keys()
    for name, array in again.items():
        assert array.tobytes() == found["apart"][name].tobytes()


def test_the_factors_of_experts_stay_in_their_file(tmp_path: Path) -> None:
    base = save_base(tmp_path / "base", fused(np.float32), CONFIG)
    plan = merge.plan(opened(base), [adapter(tmp_path / "a", 10, "0.21.2")], Options())
    terms = [term for work in plan.works.values() for term in work.terms]
    assert len(terms) == 2 * EXPERTS
    assert all(isinstance(term.a, FileTensor) for term in terms)
    sizes = 4 * RANK * EXPERTS * (2 * INNER + HIDDEN + HIDDEN + INNER)
    base_bytes = sum(tensor.nbytes for tensor in plan.base.tensors.values())
    assert plan.read_bytes == base_bytes + sizes
