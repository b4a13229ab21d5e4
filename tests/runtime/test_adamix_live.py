"""AdaMix beside a BERT, against the original's forward pass written down in fp64."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from adapterhub import formats
from adapterhub.registry import inspection
from adapterhub.runtime.hooks import hooked, install
from adapterhub.tensorfile import ArrayTensor, write_file

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

WIDTH, BOTTLENECK, EXPERTS = 16, 4, 3


def model() -> Any:
    torch.manual_seed(0)
    config = transformers.BertConfig(
        vocab_size=32,
        hidden_size=WIDTH,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=24,
        max_position_embeddings=32,
    )
    return transformers.BertModel(config).eval()


def soups(prefix: str) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(1)
    found = {}
    for layer in range(2):
        start = f"{prefix}encoder.layer.{layer}.output.ExpertSoup"
        for side, count, shape in (
            ("MoA_A", EXPERTS, (BOTTLENECK, WIDTH)),
            ("MoA_B", 1, (WIDTH, BOTTLENECK)),
        ):
            for k in range(count):
                expert = f"{start}.{side}.deepspeed_experts.{k}"
                found[f"{expert}.weight"] = rng.standard_normal(shape, np.float32)
                found[f"{expert}.bias"] = rng.standard_normal(shape[0], np.float32)
    return found


def soup(x: np.ndarray, arrays: dict[str, np.ndarray], start: str) -> np.ndarray:
    def projected(x: np.ndarray, side: str, count: int) -> np.ndarray:
        experts = [f"{start}.{side}.deepspeed_experts.{k}" for k in range(count)]
        weight = sum(arrays[f"{e}.weight"].astype(np.float64) for e in experts) / count
        bias = sum(arrays[f"{e}.bias"].astype(np.float64) for e in experts) / count
        return np.asarray(x @ weight.T + bias)

    down = projected(x, "MoA_A", EXPERTS)
    gelu = down * 0.5 * (1 + np.vectorize(math.erf)(down / math.sqrt(2)))
    return projected(gelu, "MoA_B", 1) + x


def test_attached_it_computes_what_the_original_does(tmp_path: Path) -> None:
    arrays = soups("")
    config = {"adapterhub": 1, "method": "adamix", "num_experts": EXPERTS}
    (tmp_path / "adapter_config.json").write_text(json.dumps(config))
    tensors = {name: ArrayTensor(array) for name, array in arrays.items()}
    write_file(tmp_path / "adapter_model.safetensors", tensors)
    adapter = inspection.require(formats.read(tmp_path))
    live, tokens = model(), torch.arange(14).reshape(2, 7)
    found = hooked("adamix")
    assert found is not None
    with torch.no_grad():
        before = live(tokens).last_hidden_state
        undo = install(live, found.plan(live, adapter, 1.0))
        got = live(tokens).last_hidden_state
        undo()
        assert torch.equal(live(tokens).last_hidden_state, before)
        live = live.double()
        for number, layer in enumerate(live.encoder.layer):
            start = f"encoder.layer.{number}.output.ExpertSoup"

            def mixed(module: Any, args: Any, output: Any, start: str = start) -> Any:
                return torch.from_numpy(soup(output.numpy(), arrays, start))

            layer.output.dense.register_forward_hook(mixed)
        expected = live(tokens).last_hidden_state
    np.testing.assert_allclose(got.numpy(), expected.numpy(), atol=1e-5, rtol=1e-5)
    assert float((got - before).abs().max()) > 1e-2
