"""Values of odd types from Python, matrices without elements, and files that change meanwhile."""

from __future__ import annotations

import decimal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from composing_building import Q, composed, deltas, given, lora
from safetensors.numpy import load_file, save_file

from adapterhub import api, formats
from adapterhub.errors import (
    AdapterHubError,
    InvalidAdapter,
    InvalidOption,
    NotMergeable,
    NotSupported,
)
from adapterhub.registry import Registry

ODD: Any = [None, "0.5", b"1", True, [], {}, 1j, decimal.Decimal("0.5"), 10**400, np.ones(2)]
NOT_THERE = "not looked for"


@pytest.fixture
def registry(tmp_path: Path) -> Any:
    with Registry(tmp_path / "home") as found:
        yield found


# --- refused before any file is read ----------------------------------------------------------


@pytest.mark.parametrize("weight", [*ODD, float("nan"), float("-inf")], ids=lambda v: repr(v)[:20])
def test_weights_of_odd_types(tmp_path: Path, registry: Registry, weight: Any) -> None:
    with pytest.raises(InvalidOption, match=f"the weight of {NOT_THERE} is"):
        api.compose([(NOT_THERE, weight)], out=tmp_path / "out", registry=registry)


def test_weights_of_numpy(tmp_path: Path) -> None:
    path = lora(tmp_path / "a", 1)
    found = []
    for n, weight in enumerate((0.5, np.float32(0.5), np.float64(0.5))):
        api.compose([(path, weight)], out=tmp_path / str(n))
        found.append((tmp_path / str(n) / "adapterhub.json").read_bytes())
    assert found[0] == found[1] == found[2]


@pytest.mark.parametrize("field", ["rank", "energy", "seed"])
@pytest.mark.parametrize("value", [*ODD[1:], 0.5j, -1, 1.5], ids=lambda v: repr(v)[:20])
def test_options_of_odd_types(tmp_path: Path, registry: Registry, field: str, value: Any) -> None:
    with pytest.raises(InvalidOption, match=field):
        api.compose([NOT_THERE], out=tmp_path / "out", registry=registry, **{field: value})
    if field == "seed":
        return
    with pytest.raises(InvalidOption, match=field):
        api.resize(NOT_THERE, out=tmp_path / "out", registry=registry, **{field: value})
    field = "sparse" if field == "energy" else field
    with pytest.raises(InvalidOption, match=field):
        api.extract("x", "y", out=tmp_path / "out", registry=registry, **{field: value})


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"method": None}, "no method None"),
        ({"method": ["sum"]}, "no method"),
        ({"method": "tis"}, "no method 'tis'"),
        ({"method": "ties", "parameters": {"density": "0.5"}}, "density is '0.5'"),
        ({"method": "ties", "parameters": {"density": 1.0000001}}, "density is"),
        ({"method": "ties", "parameters": {1: 2, "x": 3}}, "has no parameter"),
        ({"method": "slerp"}, "takes 2 adapters, 1 were given"),
    ],
)
def test_methods_are_checked_before_adapters(
    tmp_path: Path, registry: Registry, options: dict[str, Any], said: str
) -> None:
    with pytest.raises(InvalidOption, match=said):
        api.compose([NOT_THERE], out=tmp_path / "out", registry=registry, **options)


@pytest.mark.parametrize("adapters", ["abc", Path("abc"), [["a", 1.0]], [("a", 1, 2)], [1], [None]])
def test_what_is_no_list_of_adapters(tmp_path: Path, registry: Registry, adapters: Any) -> None:
    with pytest.raises(InvalidOption, match="adapter"):
        api.compose(adapters, out=tmp_path / "out", registry=registry)


def test_recipes_are_checked_before_adapters(tmp_path: Path, registry: Registry) -> None:
    for weight in ("1e999", "[{filter: q, value: 1.0}, {value: 1e999}]"):
        path = tmp_path / "recipe.yaml"
        model = f"{{model: {NOT_THERE}, parameters: {{weight: {weight}}}}}"
        path.write_text(f"merge_method: sum\nmodels: [{model}]\nname: x\n")
        with pytest.raises(InvalidOption, match="the weight of not looked for is inf"):
            api.compose(recipe=path, registry=registry)


# --- what a file cannot hold ------------------------------------------------------------------


@pytest.mark.parametrize("side", ["lora_A", "lora_B"])
def test_matrices_without_elements(tmp_path: Path, registry: Registry, side: str) -> None:
    path = lora(tmp_path / "a", 1, modules=[Q])
    file = path / "adapter_model.safetensors"
    arrays = load_file(file)
    for name in arrays:
        if side in name:
            arrays[name] = arrays[name][:, :0] if side == "lora_A" else arrays[name][:0]
    save_file(arrays, file, {"format": "pt"})
    for method in ("sum", "ties", "tsv", "peft_svd"):
        with pytest.raises(NotMergeable, match="without elements"):
            composed([given(path)], method=method)
    with pytest.raises(NotMergeable, match="without elements"):
        api.resize(path, energy=0.9, out=tmp_path / "out", registry=registry)
    with pytest.raises(NotMergeable, match="without elements"):
        api.compare([path, path], registry=registry)


def test_a_uniform_rank_of_values_beyond_fp32(tmp_path: Path, registry: Registry) -> None:
    path = lora(tmp_path / "a", 1)
    file = path / "adapter_model.safetensors"
    save_file({k: np.full_like(v, 3e38) for k, v in load_file(file).items()}, file)
    with pytest.raises(NotMergeable, match="infinite"):
        api.resize(path, energy=0.9, uniform=True, out=tmp_path / "out", registry=registry)


def test_more_than_a_config_holds(tmp_path: Path, registry: Registry) -> None:
    """Ranks beyond the schema's, and an alpha that rsLoRA's scale makes so: never unreadable."""
    inputs = []
    for n in range(2):
        path = lora(tmp_path / str(n), n, modules=[Q], r=600_000)
        arrays = {
            f"base_model.model.{Q}.lora_A.weight": np.full((600_000, 1), n + 1, np.float32),
            f"base_model.model.{Q}.lora_B.weight": np.ones((1, 600_000), np.float32),
        }
        save_file(arrays, path / "adapter_model.safetensors")
        inputs.append(path)
    with pytest.raises(NotSupported, match="does not fit into the config") as found:
        api.compose(inputs, out=tmp_path / "out", registry=registry)
    assert "1200000" in str(found.value)
    steep = lora(tmp_path / "steep", 1, rank=4, lora_alpha=1e12, use_rslora=True)
    with pytest.raises(NotSupported, match="lora_alpha"):
        api.resize(steep, rank=8, out=tmp_path / "out", registry=registry)
    assert not (tmp_path / "out").exists()


# --- inputs that change -----------------------------------------------------------------------


@pytest.mark.parametrize("verb", ["compose", "resize", "compare"])
def test_adapters_that_change_meanwhile(
    tmp_path: Path, registry: Registry, monkeypatch: pytest.MonkeyPatch, verb: str
) -> None:
    """Another file of the same layout takes the place of the one whose header was read."""
    path, other = lora(tmp_path / "a", 1), lora(tmp_path / "b", 2)
    before = sorted(tmp_path.iterdir())

    def change(modules: int) -> None:
        (other / "adapter_model.safetensors").replace(path / "adapter_model.safetensors")

    calls: dict[str, Any] = {
        "compose": lambda: api.compose(
            [path], out=tmp_path / "out", registry=registry, on_plan=change
        ),
        "resize": lambda: api.resize(
            path, rank=1, out=tmp_path / "out", registry=registry, on_plan=change
        ),
        "compare": lambda: api.compare([path, path], registry=registry, on_plan=change),
    }
    with pytest.raises(InvalidAdapter, match="changed while it was in use"):
        calls[verb]()
    assert sorted(tmp_path.iterdir()) == before


@pytest.mark.parametrize("where", ["name", "out"])
def test_tensors_saved_whole_that_change_while_they_are_written(
    tmp_path: Path, registry: Registry, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    path = lora(tmp_path / "a", 1)
    write, file = formats.write, path / "adapter_model.safetensors"

    def late(*args: Any, **options: Any) -> None:
        write(*args, **options)
        file.write_bytes(file.read_bytes())

    monkeypatch.setattr(formats, "write", late)
    to: dict[str, Any] = {"out": tmp_path / "out"} if where == "out" else {"name": "both"}
    before = sorted(tmp_path.iterdir())
    with pytest.raises(InvalidAdapter, match="changed while it was in use"):
        api.compose([path], registry=registry, **to)
    assert sorted(tmp_path.iterdir()) == before and not registry.list()


def test_adapters_that_vanish_meanwhile(tmp_path: Path, registry: Registry) -> None:
    path = lora(tmp_path / "a", 1)
    with pytest.raises(AdapterHubError, match="no such file"):
        api.compose(
            [path],
            out=tmp_path / "out",
            registry=registry,
            on_plan=lambda _: (path / "adapter_model.safetensors").unlink(),
        )
    assert not (tmp_path / "out").exists()


def test_one_adapter_by_two_names_is_one(tmp_path: Path, registry: Registry) -> None:
    """By a path, by a link to it, by two names in the registry: A − A is nothing."""
    path, link = lora(tmp_path / "a", 1), tmp_path / "link"
    link.symlink_to(path)
    versions = [registry.add(path, name=name).version for name in ("one", "two")]
    ways: list[str | Path] = [path, link, "one", versions[1]]
    for number, other in enumerate(ways):
        out = tmp_path / f"out{number}"
        api.compose([path, (other, -1.0)], out=out, registry=registry)
        assert not any(delta.any() for delta in deltas(given(out).adapter).values())
