"""Adapters that are not low-rank: vectors, sparse sets, bottlenecks and prompts."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from adapterhub import api
from adapterhub.errors import AdapterHubError, InvalidOption, NotMergeable, NotSupported
from adapterhub.registry import Registry

K, W = "model.layers.0.self_attn.k_proj", "model.layers.0.mlp.down_proj"


@pytest.fixture
def registry(tmp_path: Path) -> Any:
    with Registry(tmp_path / "home") as found:
        yield found


def saved(path: Path, tensors: Mapping[str, Any], config: Mapping[str, Any]) -> Path:
    path.mkdir()
    (path / "adapter_config.json").write_text(
        json.dumps({"base_model_name_or_path": "owner/base", **config})
    )
    save_file(dict(tensors), path / "adapter_model.safetensors", {"format": "pt"})
    return path


def composed(registry: Registry, tmp_path: Path, specs: Any, **options: Any) -> dict[str, Any]:
    api.compose(specs, out=tmp_path / "out", registry=registry, **options)
    assert registry.inspect(tmp_path / "out").problems is not None
    return dict(load_file(tmp_path / "out" / "adapter_model.safetensors"))


def noise(seed: int, *shape: int) -> Any:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


# --- (IA)³ ------------------------------------------------------------------------------------


def ia3(path: Path, seed: int, modules: Any = (K, W)) -> Path:
    tensors = {}
    for number, module in enumerate(modules):
        shape = (1, 6) if module == W else (8, 1)
        tensors[f"base_model.model.{module}.ia3_l"] = noise(seed + 10 * number, *shape)
    names = sorted(module.rpartition(".")[2] for module in modules)
    config = {
        "peft_type": "IA3",
        "target_modules": names,
        "feedforward_modules": [name for name in names if name == "down_proj"],
    }
    return saved(path, tensors, config)


def test_the_weighted_mean_of_vectors(tmp_path: Path, registry: Registry) -> None:
    a, b = ia3(tmp_path / "a", 1), ia3(tmp_path / "b", 2, [K])
    found = composed(registry, tmp_path, [(a, 3.0), (b, 1.0)], method="average")
    one, two = (load_file(path / "adapter_model.safetensors") for path in (a, b))
    k, w = (f"base_model.model.{module}.ia3_l" for module in (K, W))
    assert np.allclose(found[k], 0.75 * one[k].astype(float) + 0.25 * two[k], atol=1e-7)
    assert np.allclose(found[w], 0.75 * one[w].astype(float) + 0.25, atol=1e-7)  # b leaves it alone
    config = json.loads((tmp_path / "out" / "adapter_config.json").read_text())
    assert config["target_modules"] == ["down_proj", "k_proj"]
    manifest = json.loads((tmp_path / "out" / "adapterhub.json").read_text())
    assert manifest["lineage"]["parameters"]["reproducible"] is True


# --- biases, sparse sets ----------------------------------------------------------------------


def native(path: Path, method: str, tensors: Mapping[str, Any], **config: Any) -> Path:
    return saved(path, tensors, {"adapterhub": 1, "method": method, **config})


def test_biases(tmp_path: Path, registry: Registry) -> None:
    paths = [
        native(
            tmp_path / str(n), "bitfit", {f"{K}.bias": noise(n, 8), f"{W}.bias": noise(9 * n, 4)}
        )
        for n in (1, 2)
    ]
    found = composed(registry, tmp_path, paths, method="average")
    assert np.allclose(found[f"{K}.bias"], (noise(1, 8) + noise(2, 8).astype(float)) / 2, atol=1e-7)
    other = native(tmp_path / "3", "bitfit", {f"{K}.bias": noise(3, 8)})
    with pytest.raises(NotMergeable, match="do not have the same tensors") as error:
        api.compose([paths[0], other], method="average", out=tmp_path / "no", registry=registry)
    assert f"{other}: {W}.replace:bias" in error.value.details


def sparse(path: Path, places: list[int], values: list[float]) -> Path:
    tensors = {
        f"{W}:weight.indices": np.array(places, np.int64),
        f"{W}:weight.values": np.array(values, np.float32),
    }
    return native(path, "fishmask", tensors, shapes={f"{W}.weight": [2, 3]})


def test_sparse_sets_by_hand(tmp_path: Path, registry: Registry) -> None:
    a = sparse(tmp_path / "a", [0, 2, 5], [1.0, 2.0, 3.0])
    b = sparse(tmp_path / "b", [2, 3], [10.0, 20.0])
    found = composed(registry, tmp_path, [(a, 2.0), (b, -1.0)])
    assert found[f"{W}:weight.indices"].tolist() == [0, 2, 3, 5]
    assert found[f"{W}:weight.values"].tolist() == [2.0, -6.0, -20.0, 6.0]


# --- prompts ----------------------------------------------------------------------------------


def prompt(path: Path, seed: int, tokens: int, kind: str = "PROMPT_TUNING", rows: int = 0) -> Path:
    config = {
        "peft_type": kind,
        "task_type": "CAUSAL_LM",
        "num_virtual_tokens": tokens,
        "token_dim": 4,
        "num_layers": 2,
        "num_attention_heads": 2,
        "num_transformer_submodules": 2 if rows else 1,
    }
    return saved(path, {"prompt_embeddings": noise(seed, rows or tokens, 4)}, config)


@pytest.mark.parametrize("kind", ["PROMPT_TUNING", "P_TUNING", "PREFIX_TUNING"])
def test_prompts_in_a_row_and_their_mean(tmp_path: Path, registry: Registry, kind: str) -> None:
    a, b = prompt(tmp_path / "a", 1, 3, kind), prompt(tmp_path / "b", 2, 5, kind)
    found = composed(registry, tmp_path, [a, b], method="concat")
    assert (found["prompt_embeddings"] == np.concatenate([noise(1, 3, 4), noise(2, 5, 4)])).all()
    config = json.loads((tmp_path / "out" / "adapter_config.json").read_text())
    assert config["num_virtual_tokens"] == 8
    with pytest.raises(AdapterHubError, match=r"is \[5, 4\] in"):
        api.compose([a, b], method="average", out=tmp_path / "no", registry=registry)
    with pytest.raises(InvalidOption, match="one after the other"):
        api.compose([(a, 0.5), b], method="concat", out=tmp_path / "no", registry=registry)


def test_prompts_of_encoder_and_decoder_stay_apart(tmp_path: Path, registry: Registry) -> None:
    a, b = prompt(tmp_path / "a", 1, 2, rows=4), prompt(tmp_path / "b", 2, 1, rows=2)
    found = composed(registry, tmp_path, [a, b], method="concat")["prompt_embeddings"]
    one, two = noise(1, 4, 4), noise(2, 2, 4)
    assert (found == np.concatenate([one[:2], two[:1], one[2:], two[1:]])).all()


# --- bottlenecks ------------------------------------------------------------------------------

GOLDEN = Path(__file__).parents[1] / "golden" / "adapters" / "bert"


@pytest.mark.parametrize("kind", ["pfeiffer", "houlsby", "parallel", "compacter_own", "nice"])
def test_bottlenecks_of_adapterhub(tmp_path: Path, registry: Registry, kind: str) -> None:
    """Its own average_adapter: Σ wᵢ·vᵢ of every tensor."""
    other = tmp_path / "other"
    other.mkdir()
    config = GOLDEN / kind / "adapter_config.json"
    (other / config.name).write_text(config.read_text())
    one = load_file(GOLDEN / kind / "adapter.safetensors")
    two = {name: noise(n, *array.shape) for n, (name, array) in enumerate(sorted(one.items()))}
    save_file(two, other / "adapter.safetensors")
    specs = [(GOLDEN / kind, 0.25), (other, 0.75)]
    api.compose(specs, method="average", out=tmp_path / "out", force_base=True, registry=registry)
    found = load_file(tmp_path / "out" / "adapter.safetensors")
    assert found.keys() == one.keys()
    for name, array in found.items():
        expected = 0.25 * one[name].astype(float) + 0.75 * two[name].astype(float)
        assert np.allclose(array, expected, atol=1e-7)
    assert registry.add(tmp_path / "out", name="both").method in ("bottleneck", "compacter")


# --- refusals ---------------------------------------------------------------------------------


def test_what_does_not_go_together(tmp_path: Path, registry: Registry) -> None:
    vectors, places = ia3(tmp_path / "a", 1), sparse(tmp_path / "b", [0], [1.0])
    cases: list[tuple[Any, dict[str, Any], str]] = [
        ([vectors, places], {"method": "average"}, "cannot be composed with each other"),
        ([vectors], {"method": "sum"}, "ia3 adapters cannot be composed by sum"),
        ([vectors], {"method": "average", "rank": 4}, "no rank to truncate"),
        ([places], {"method": "concat"}, "cannot be composed by concat"),
    ]
    for specs, options, said in cases:
        with pytest.raises(NotSupported, match=said):
            api.compose(specs, out=tmp_path / "out", registry=registry, **options)
    assert not (tmp_path / "out").exists()


def test_heads_are_decided_on(tmp_path: Path, registry: Registry) -> None:
    paths = []
    for number in (1, 2):
        path = ia3(tmp_path / str(number), number)
        file = path / "adapter_model.safetensors"
        head = {"base_model.model.score.weight": noise(number, 2, 8)}
        save_file({**load_file(file), **head}, file, {"format": "pt"})
        config = json.loads((path / "adapter_config.json").read_text())
        config |= {"modules_to_save": ["score"], "task_type": "SEQ_CLS"}
        (path / "adapter_config.json").write_text(json.dumps(config))
        paths.append(path)
    with pytest.raises(NotMergeable, match="tensors that are saved whole differ"):
        api.compose(paths, method="average", out=tmp_path / "out", registry=registry)
    found = composed(registry, tmp_path, paths, method="average", whole=str(paths[1]))
    assert (found["base_model.model.score.weight"] == noise(2, 2, 8)).all()


def test_values_that_are_not_finite(tmp_path: Path, registry: Registry) -> None:
    a = sparse(tmp_path / "a", [0, 2], [1.0, float("inf")])
    with pytest.raises(AdapterHubError, match="NaN or infinity"):
        api.compose([a], out=tmp_path / "out", registry=registry)
    big = sparse(tmp_path / "b", [0], [3e38])
    with pytest.raises(NotMergeable, match="becomes infinite"):
        api.compose([(big, 10.0)], out=tmp_path / "out", registry=registry)
