"""AdapterHub: read into the canonical form, written back under the same names."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import making
import numpy as np
import pytest

from adapterhub import formats
from adapterhub.adapter import Adapter, Reading
from adapterhub.errors import AdapterHubError, InvalidAdapter, NotSupported, PickleRefused
from adapterhub.formats.adapterhub_keys import Keys
from adapterhub.methods import method
from adapterhub.registry import inspection
from adapterhub.tensorfile import read_header

HEAD: making.Shapes = {
    "heads.md.1.weight": (8, 8),
    "heads.md.1.bias": (8,),
    "heads.md.4.weight": (2, 8),
    "heads.md.4.bias": (2,),
}
HEAD_CONFIG = {
    "config": {"head_type": "classification", "num_labels": 2, "label2id": {"yes": 1, "no": 0}},
    "name": "md",
}
QUERY = "bert.encoder.layer.0.attention.self.query"


def save(path: Path, shapes: making.Shapes, inner: dict[str, Any], **fields: Any) -> Path:
    making.safetensors(path / "adapter.safetensors", shapes)
    making.config(path / "adapter_config.json", **{**making.ADAPTERHUB, "config": inner, **fields})
    return path


def with_head(path: Path) -> Path:
    making.adapterhub(path)
    making.safetensors(path / "model_head.safetensors", HEAD)
    making.config(path / "head_config.json", **HEAD_CONFIG)
    return path


def arrays_of(*files: Path) -> dict[str, np.ndarray]:
    return {n: t.read() for file in files for n, t in read_header(file).tensors.items()}


def same(left: Adapter, right: Adapter) -> None:
    assert left.config == right.config
    assert (left.method, left.format, left.base) == (right.method, right.format, right.base)
    assert (left.task, left.labels) == (right.task, right.labels)
    ours, theirs = list(left.tensors()), list(right.tensors())
    assert [pair[:2] for pair in ours] == [pair[:2] for pair in theirs]
    for (_, role, one), (_, _, other) in zip(ours, theirs, strict=True):
        assert (one.dtype, one.shape) == (other.dtype, other.shape), role
        assert np.array_equal(one.read(), other.read()), role


def codes(reading: Reading) -> list[str]:
    return [problem.code for problem in reading.fatal]


def test_a_bottleneck_with_its_head(tmp_path: Path) -> None:
    adapter = inspection.require(formats.read(with_head(tmp_path / "a")))
    assert (adapter.method, adapter.format) == ("bottleneck", "adapterhub")
    assert adapter.base.name == "owner/bert"
    assert (adapter.task, adapter.labels) == ("SEQ_CLS", ("no", "yes"))
    assert set(adapter.modules) == {"bert.encoder.layer.0.output", "heads.1", "heads.4"}
    assert set(adapter.modules["bert.encoder.layer.0.output"]) == {
        "adapter_down.0.weight",
        "adapter_down.0.bias",
        "adapter_up.weight",
        "adapter_up.bias",
    }
    assert set(adapter.modules["heads.4"]) == {"replace:weight", "replace:bias"}
    assert adapter.config["reduction_factor"] == 2
    assert adapter.config["adapterhub"]["model_class"] == "BertAdapterModel"
    assert adapter.config["adapterhub"]["head_config"] == HEAD_CONFIG


def test_the_width_and_the_placement_of_a_bottleneck_show(tmp_path: Path) -> None:
    seen = inspection.inspect(formats.read(with_head(tmp_path / "a")), source="x")
    assert seen.rank == {"min": 4, "max": 4, "pattern": {}, "declared": None}
    assert seen.targets == ("bert.encoder.layer.*.output",)


@pytest.mark.parametrize("name", ["bottleneck", "compacter"])
@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ({"mh_adapter": True, "output_adapter": True}, ("houlsby",)),
        ({"mh_adapter": False, "output_adapter": True}, ("pfeiffer",)),
        ({"output_adapter": True}, ("pfeiffer",)),
        ({"mh_adapter": False, "output_adapter": True, "is_parallel": True}, ("parallel",)),
        ({"mh_adapter": True, "output_adapter": False}, ()),
    ],
)
def test_placements(name: str, config: dict[str, Any], expected: tuple[str, ...]) -> None:
    assert method(name).variants(config) == expected


def test_what_is_written_is_what_was_read(tmp_path: Path) -> None:
    source, out = with_head(tmp_path / "a"), tmp_path / "b"
    out.mkdir()
    adapter = inspection.require(formats.read(source))
    formats.write(adapter, out, to="adapterhub")
    same(inspection.require(formats.read(out)), adapter)
    files = ("adapter.safetensors", "model_head.safetensors")
    ours, theirs = ([place / n for n in files] for place in (out, source))
    assert arrays_of(*ours).keys() == arrays_of(*theirs).keys()
    for name in ("adapter_config.json", "head_config.json"):
        assert json.loads((out / name).read_text()) == json.loads((source / name).read_text())


@pytest.mark.parametrize(
    ("inner", "shapes", "method", "places"),
    [
        (
            {"architecture": "lora", "composition_mode": "add", "r": 2, "alpha": 4},
            {f"{QUERY}.loras.md.lora_A": (2, 6), f"{QUERY}.loras.md.lora_B": (4, 2)},
            "lora",
            {(QUERY, "lora_A"), (QUERY, "lora_B")},
        ),
        (
            {"architecture": "lora", "composition_mode": "scale", "r": 1, "alpha": 1},
            {f"{QUERY}.loras.md.lora_B": (4, 1)},
            "ia3",
            {(QUERY, "ia3_l")},
        ),
        (
            {"architecture": None, "phm_layer": True},
            {
                "bert.layer.0.output.adapters.md.adapter_down.0.W_left": (4, 2, 1),
                "bert.shared_parameters.md.phm_rule": (4, 4, 4),
            },
            "compacter",
            {
                ("bert.layer.0.output", "adapter_down.0.W_left"),
                ("bert", "shared_parameters:phm_rule"),
            },
        ),
        (
            {"architecture": "prompt_tuning", "prompt_length": 5},
            {"bert.prompt_tuning.prompt_tunings.md.prompt_embedding.weight": (5, 8)},
            "prompt_tuning",
            {("bert.prompt_tuning", "prompt_embedding.weight")},
        ),
        (
            {"architecture": "prefix_tuning", "prefix_length": 3},
            {
                "bert.prefix_tuning.prefix_tunings.md.self_prefix.wte.weight": (3, 8),
                "bert.layer.0.prefix_tuning.pool.prefix_tunings.md.self_prefix.wte.weight": (3, 8),
                "bert.layer.0.prefix_tuning.prefix_gates.md.weight": (1, 8),
            },
            "prefix_tuning",
            {
                ("bert.prefix_tuning", "self_prefix.wte.weight"),
                ("bert.layer.0.prefix_tuning.pool", "self_prefix.wte.weight"),
                ("bert.layer.0.prefix_tuning", "prefix_gates:weight"),
            },
        ),
        (
            {"inv_adapter": "nice"},
            {
                "bert.invertible_adapters.md.F.0.weight": (4, 4),
                "bert.layer.0.output.adapters.md.adapter_up.weight": (8, 4),
                "bert.layer.0.output.adapters.md.gate.weight": (1, 8),
            },
            "bottleneck",
            {
                ("bert", "invertible_adapters:F.0.weight"),
                ("bert.layer.0.output", "adapter_up.weight"),
                ("bert.layer.0.output", "adapters:gate.weight"),
            },
        ),
        (
            {
                "architecture": "union",
                "configs": [
                    {"architecture": "prefix_tuning", "prefix_length": 3},
                    {"architecture": None},
                    {"architecture": "lora", "r": 2, "alpha": 4},
                ],
            },
            {
                f"{QUERY}.loras.md.lora_A": (2, 6),
                f"{QUERY}.loras.md.gate.weight": (1, 6),
                "bert.layer.0.output.adapters.md.adapter_down.0.weight": (4, 8),
            },
            "unipelt",
            {
                (QUERY, "lora_A"),
                (QUERY, "loras:gate.weight"),
                ("bert.layer.0.output", "adapter_down.0.weight"),
            },
        ),
    ],
    ids=["lora", "ia3", "compacter", "prompt", "prefix", "invertible", "unipelt"],
)
def test_methods_and_places(
    tmp_path: Path,
    inner: dict[str, Any],
    shapes: making.Shapes,
    method: str,
    places: set[tuple[str, str]],
) -> None:
    source, out = save(tmp_path / "a", shapes, inner), tmp_path / "b"
    reading = formats.read(source)
    adapter = inspection.require(reading)
    assert adapter.method == reading.method == method
    assert {pair[:2] for pair in adapter.tensors()} == places
    out.mkdir()
    formats.write(adapter, out, to="adapterhub")
    assert json.loads((out / "adapter_config.json").read_text())["config"] == inner
    found, before = (arrays_of(p / "adapter.safetensors") for p in (out, source))
    assert found.keys() == before.keys()
    assert all(np.array_equal(found[name], before[name]) for name in before)
    same(inspection.require(formats.read(out)), adapter)


@pytest.mark.parametrize(
    ("version", "alpha"), [("adapters.1.0.1", 2), ("adapters.1.1.0", 16), ("3.2.1", 16)]
)
def test_alpha_is_what_the_forward_pass_took(tmp_path: Path, version: str, alpha: int) -> None:
    """Before 1.1.0 `scaling` was left out of it, so that alpha was r."""
    inner = {"architecture": "lora", "composition_mode": "add", "r": 2, "alpha": 16}
    shapes = {f"{QUERY}.loras.md.lora_A": (2, 6), f"{QUERY}.loras.md.lora_B": (4, 2)}
    adapter = inspection.require(formats.read(save(tmp_path, shapes, inner, version=version)))
    assert (adapter.config["r"], adapter.config["lora_alpha"]) == (2, alpha)


def test_a_dora_magnitude_goes_both_ways(tmp_path: Path) -> None:
    keys = Keys("md")
    assert keys.place(f"{QUERY}.loras.md.m.weight") == (QUERY, "lora_magnitude_vector")
    assert keys.key(QUERY, "lora_magnitude_vector") == f"{QUERY}.loras.md.m.weight"
    inner = {"architecture": "lora", "composition_mode": "add", "r": 2, "alpha": 4, "dora": True}
    shapes = {
        f"{QUERY}.loras.md.lora_A": (2, 6),
        f"{QUERY}.loras.md.lora_B": (4, 2),
        f"{QUERY}.loras.md.m.weight": (4, 1),
    }
    source, out = save(tmp_path / "a", shapes, inner), tmp_path / "b"
    adapter = inspection.require(formats.read(source))
    assert adapter.modules[QUERY]["lora_magnitude_vector"].shape == (4,)
    out.mkdir()
    formats.write(adapter, out, to="adapterhub")
    found = arrays_of(out / "adapter.safetensors")[f"{QUERY}.loras.md.m.weight"]
    expected = arrays_of(source / "adapter.safetensors")[f"{QUERY}.loras.md.m.weight"]
    assert found.shape == (4, 1) and np.array_equal(found, expected)


@pytest.mark.parametrize("dora", [False, True])
def test_use_dora_as_adapters_1_3_writes_it(tmp_path: Path, dora: bool) -> None:
    inner = {"architecture": "lora", "composition_mode": "add", "r": 2, "alpha": 4}
    shapes = {f"{QUERY}.loras.md.lora_A": (2, 6), f"{QUERY}.loras.md.lora_B": (4, 2)}
    shapes |= {f"{QUERY}.loras.md.m.weight": (4, 1)} if dora else {}
    source, out = save(tmp_path / "a", shapes, {**inner, "use_dora": dora}), tmp_path / "b"
    adapter = inspection.require(formats.read(source))
    assert adapter.config["use_dora"] is dora
    out.mkdir()
    formats.write(adapter, out, to="adapterhub")
    assert json.loads((out / "adapter_config.json").read_text())["config"]["use_dora"] is dora
    same(adapter, inspection.require(formats.read(out)))


def test_pickles_need_consent(tmp_path: Path) -> None:
    making.pickled(tmp_path / "pytorch_adapter.bin", making.DOWN_UP)
    making.config(tmp_path / "adapter_config.json", **making.ADAPTERHUB)
    reading = formats.read(tmp_path)
    assert (reading.format, reading.method) == ("adapterhub", "bottleneck")
    assert reading.outline is not None
    assert reading.outline.targets == ("bert.encoder.layer.0.output",)
    assert reading.outline.base.name == "owner/bert"
    with pytest.raises(PickleRefused, match=r"pytorch_adapter\.bin is a pickle"):
        inspection.require(reading)
    whole = formats.read(tmp_path, allow_pickle=True)
    assert inspection.require(whole).parameters == 4 * 8 + 4 + 8 * 4 + 8
    safe = whole.files[0].safe
    assert safe is not None
    assert (safe.name, set(safe.tensors)) == ("adapter.safetensors", set(making.DOWN_UP))


# --- what is wrong ----------------------------------------------------------------------------


def test_tensors_of_another_adapter_are_refused(tmp_path: Path) -> None:
    shapes = {**making.DOWN_UP, "bert.layer.0.output.adapters.other.adapter_up.weight": (8, 4)}
    reading = formats.read(save(tmp_path, shapes, making.INNER))
    assert codes(reading) == ["unknown-keys"]
    assert "adapters.other.adapter_up" in reading.fatal[0].message


@pytest.mark.parametrize("name", ["adapter_fusion_config.json", "embedding.pt"])
def test_what_would_be_left_out_is_refused_by_name(tmp_path: Path, name: str) -> None:
    making.adapterhub(tmp_path)
    making.config(tmp_path / name)
    with pytest.raises(NotSupported, match=f"{name} belong to the adapter and are not read"):
        inspection.require(formats.read(tmp_path))


def test_both_a_pickle_and_safetensors_are_refused(tmp_path: Path) -> None:
    making.adapterhub(tmp_path)
    making.pickled(tmp_path / "pytorch_adapter.bin", making.DOWN_UP)
    with pytest.raises(InvalidAdapter, match=r"both adapter\.safetensors and pytorch"):
        inspection.require(formats.read(tmp_path))


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"name": "a.b"}, "cannot be called"),
        ({"config": {"architecture": "mystery"}}, "architecture 'mystery'"),
        ({"config": {"architecture": "union", "configs": 3}}, "method union is not supported"),
        ({"config": {"lora_alpha": 3, "architecture": "lora"}}, "a field lora_alpha"),
        ({"head_config": {}}, "a field head_config"),
        (
            {"config": {"architecture": "lora", "composition_mode": "scale", "alpha": 2}},
            "alpha is 2",
        ),
    ],
)
def test_configs_that_mean_something_else(
    tmp_path: Path, fields: dict[str, Any], said: str
) -> None:
    save(tmp_path, making.DOWN_UP, making.INNER, **fields)
    with pytest.raises(AdapterHubError) as caught:
        inspection.require(formats.read(tmp_path))
    assert said in str(caught.value)


def test_half_a_head_is_refused(tmp_path: Path) -> None:
    with_head(tmp_path)
    (tmp_path / "head_config.json").rename(tmp_path / "kept")
    assert codes(formats.read(tmp_path)) == ["no-config"]
    (tmp_path / "kept").rename(tmp_path / "head_config.json")
    (tmp_path / "model_head.safetensors").unlink()
    assert codes(formats.read(tmp_path)) == ["no-weights"]
    making.safetensors(tmp_path / "model_head.safetensors", {"heads.other.1.weight": (2, 8)})
    assert codes(formats.read(tmp_path)) == ["unknown-keys"]


def test_weights_without_a_config_are_named(tmp_path: Path) -> None:
    making.adapterhub(tmp_path)
    (tmp_path / "adapter_config.json").unlink()
    reading = formats.read(tmp_path)
    assert (reading.format, codes(reading)) == ("adapterhub", ["no-config"])


def test_only_its_own_adapters_are_written(tmp_path: Path) -> None:
    adapter = inspection.require(formats.read(making.peft(tmp_path / "a")))
    with pytest.raises(NotSupported, match="only adapters that came from AdapterHub"):
        formats.write(adapter, tmp_path, to="adapterhub")
