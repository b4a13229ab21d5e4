"""What nobody should compose, and where nobody should write: refused, with nothing left behind."""

from __future__ import annotations

import errno
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from composing_building import composed, given, lora
from safetensors.numpy import load_file, save_file

from adapterhub import api, formats
from adapterhub.composing import writing
from adapterhub.composing.comparing.plot import check as check_picture
from adapterhub.composing.recipe import LIMIT_BYTES, read, recipe_of, to_yaml
from adapterhub.composing.wholes import AVERAGE
from adapterhub.composing.window import in_order
from adapterhub.errors import (
    AdapterHubError,
    InvalidOption,
    NotFound,
    NotMergeable,
    NotSupported,
    OutputError,
    SchemaError,
)
from adapterhub.registry import Registry

ROOT = "sha256:" + "0" * 64


@pytest.fixture
def registry(tmp_path: Path) -> Any:
    with Registry(tmp_path / "home") as found:
        yield found


def changed(path: Path, **values: Any) -> Path:
    """The adapter with one array of those whose names end so replaced."""
    file = path / "adapter_model.safetensors"
    arrays = load_file(file)
    for name in arrays:
        for end, make in values.items():
            if name.endswith(f"{end}.weight"):
                arrays[name] = make(arrays[name])
    save_file(arrays, file, {"format": "pt"})
    return path


# --- recipes ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("rank: abc", "rank: got"),
        ("rank: true", "rank: got"),
        ("rank: 1.5", "rank: got"),
        ("rank: [{value: x}]", "value: got"),
        ("energy: true", "energy: got"),
        ("energy: 0x10", "decimal digits"),
        ("rank: 010", "decimal digits"),
        ("rank: 1:20", "decimal digits"),
        ("rank: 0x" + "f" * 5000, "decimal digits"),
        ("energy: .nan", "decimal digits"),
        ("energy: 1e-400", "is too small"),
        ("1: 2", "the key 1 is no text"),
        ("~: 2", "the key None is no text"),
        ("parameters: {true: 1, 1: 2}", "the key True is no text"),
    ],
)
def test_numbers_of_a_recipe_are_what_they_look_like(tmp_path: Path, line: str, said: str) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(f"merge_method: sum\nmodels: [{{model: a}}]\n{line}\n")
    with pytest.raises(SchemaError, match=said):
        read(path)


@pytest.mark.parametrize("weight", ["abc", "true", '"1.0"', "[{value: x}]"])
def test_a_weight_of_a_recipe_is_a_number(tmp_path: Path, weight: str) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(f"merge_method: sum\nmodels: [{{model: a, parameters: {{weight: {weight}}}}}]")
    with pytest.raises(SchemaError, match="expected a number"):
        read(path)


def test_a_recipe_has_whole_numbers_and_small_ones(tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(
        "merge_method: ties\nmodels: [{model: a, parameters: {weight: 1e-3}}, {model: 12abc}]\n"
        "rank: 4.0\nseed: 7.0\nparameters: {lambda: -2E+1}\n"
    )
    found = read(path)
    assert [weight for _, weight in found.models] == [0.001, 1.0]
    assert found.models[1][0] == "12abc" and found.parameters == {"lambda": -20.0}
    assert (type(found.rank), type(found.seed)) == (int, int)


def test_a_recipe_for_the_home_of_nobody(tmp_path: Path, registry: Registry) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text("merge_method: sum\nmodels: [{model: a}]\nout: ~nobody-has-this-name/x\n")
    with pytest.raises(OutputError, match="a home that nobody has"):
        api.compose(recipe=path, registry=registry)


def test_a_recipe_of_what_came_from_a_path_says_what_it_lacks(
    tmp_path: Path, registry: Registry
) -> None:
    api.compose([lora(tmp_path / "a", 1)], name="x", registry=registry)
    recipe = recipe_of(registry.show("x")["manifest"]["lineage"])
    assert recipe is not None
    path = tmp_path / "recipe.yaml"
    path.write_text(to_yaml(recipe))
    with pytest.raises(NotFound, match="came from a path"):
        api.compose(recipe=path, name="y", registry=registry)


def test_a_rank_no_file_can_hold(tmp_path: Path, registry: Registry) -> None:
    with pytest.raises(InvalidOption, match="larger than"):
        api.compose([lora(tmp_path / "a", 1)], rank=10**300, name="x", registry=registry)
    assert not registry.list()


def test_a_strangers_lineage_makes_no_endless_recipe() -> None:
    told = {"method": "sum", "parameters": {}, "rank": None, "energy": None, "whole": "refuse"}
    inputs = [{"digest": ROOT, "weights_root": ROOT, "role": "adapter", "weight": 1.0}]
    lineage = {"operation": "compose", "inputs": inputs, "parameters": told}
    assert recipe_of(lineage) is not None
    for more in ({f"k{n}": 1 for n in range(LIMIT_BYTES)}, {"k": "v" * LIMIT_BYTES}, {"k": [[]]}):
        assert recipe_of({**lineage, "parameters": {**told, "parameters": more}}) is None
    assert recipe_of({**lineage, "parameters": {**told, "rank": 10**5000}}) is None


# --- where to ---------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["a\0b", "x" * 300, "\ud800", "file/x", "d/" * 500 + "x"])
def test_odd_places_are_refused_before_any_work(
    tmp_path: Path, registry: Registry, name: str
) -> None:
    (tmp_path / "file").write_bytes(b"")
    before = sorted(tmp_path.iterdir())
    with pytest.raises(OutputError):
        api.compose(["not looked for"], out=f"{tmp_path}/{name}", registry=registry)
    with pytest.raises(OutputError):
        check_picture(Path(f"{tmp_path}/{name}.png"))
    assert sorted(tmp_path.iterdir()) == before


@pytest.mark.parametrize("where", ["name", "out"])
def test_a_full_disk_leaves_nothing(
    tmp_path: Path, registry: Registry, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    a = lora(tmp_path / "a", 1)

    def full(*args: Any, **options: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(formats, "write", full)
    to: dict[str, Any] = {"out": tmp_path / "out"} if where == "out" else {"name": "both"}
    before = sorted(tmp_path.iterdir())
    with pytest.raises(OutputError, match="No space left"):
        api.compose([a, (a, 2.0)], registry=registry, **to)
    assert sorted(tmp_path.iterdir()) == before and not registry.list()


def test_an_adapter_that_takes_the_name_of_a_very_long_path(registry: Registry) -> None:
    with pytest.raises(AdapterHubError):
        api.compose(["a" * 5000], name="x", registry=registry)


def test_check_out_takes_new_and_empty_directories(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    writing.check_out(tmp_path / "empty")
    writing.check_out(tmp_path / "some" / "new" / "place")


# --- numbers ----------------------------------------------------------------------------------


@pytest.mark.parametrize("weights", [(0.1, 0.2, -0.3), (0.0, -0.0, 0.0)])
def test_weights_that_cancel_make_no_average(tmp_path: Path, weights: tuple[float, ...]) -> None:
    inputs = [given(lora(tmp_path / str(n), n), weight) for n, weight in enumerate(weights)]
    with pytest.raises(InvalidOption, match="add up to 0"):
        composed(inputs, method="average")


def test_weights_too_large_for_an_average(tmp_path: Path) -> None:
    inputs = [given(lora(tmp_path / str(n), n), 1e308) for n in range(2)]
    with pytest.raises(InvalidOption, match="too large"):
        composed(inputs, method="average")


@pytest.mark.parametrize("method", ["sum", "ties", "knots_ties", "tsv", "iso_c", "peft_svd"])
def test_overflow_is_refused_without_a_warning(tmp_path: Path, method: str) -> None:
    inputs = [given(lora(tmp_path / str(n), n), 1e300) for n in range(2)]
    with pytest.raises(NotMergeable, match="infinite"):
        composed(inputs, method=method, parameters={"lambda": 1e300} if method == "ties" else {})


def test_fp64_factors_beyond_fp32_are_refused(tmp_path: Path) -> None:
    path = changed(lora(tmp_path / "a", 1), lora_A=lambda a: a.astype(np.float64) * 1e200)
    with pytest.raises(NotMergeable, match="NaN or infinite"):
        composed([given(path)])


def test_an_overflowing_average_of_heads(tmp_path: Path) -> None:
    inputs = []
    for n, (value, weight) in enumerate(((3e38, 1e5), (-3e38, -99_999.0))):
        path = lora(tmp_path / str(n), n, modules_to_save=["score"])
        file = path / "adapter_model.safetensors"
        head = {"base_model.model.score.weight": np.full((2, 8), value, np.float32)}
        save_file({**load_file(file), **head}, file, {"format": "pt"})
        inputs.append(given(path, weight))
    with pytest.raises(NotMergeable, match="infinite"):
        composed(inputs, whole=AVERAGE)


def test_a_matrix_larger_than_memory_is_refused(tmp_path: Path) -> None:
    def huge(n: int) -> Path:
        return changed(
            lora(tmp_path / str(n), n, modules=["model.layers.0.self_attn.q_proj"], rank=1),
            lora_A=lambda a: np.ones((1, 4_000_000), np.float32),
            lora_B=lambda b: np.ones((4_000_000, 1), np.float32),
        )

    with pytest.raises(NotSupported, match="GiB, and this machine has"):
        composed([given(huge(1)), given(huge(2))], method="ties")
    with pytest.raises(NotSupported, match="GiB"):
        list(in_order([1], lambda item: item, lambda item: 1 << 62))


# --- experts ----------------------------------------------------------------------------------


def experts(path: Path, seed: int, version: str | None) -> Path:
    """Factors of two square experts."""
    dice = np.random.default_rng(seed)
    stem = "base_model.model.model.layers.0.mlp.experts"
    path.mkdir()
    arrays = {
        f"{stem}.lora_A.weight": dice.standard_normal((6, 8)).astype(np.float32),
        f"{stem}.lora_B.weight": dice.standard_normal((8, 6)).astype(np.float32),
    }
    save_file(arrays, path / "adapter_model.safetensors", {"format": "pt"})
    config = {"peft_type": "LORA", "base_model_name_or_path": "owner/base", "r": 3}
    config |= {"lora_alpha": 6, "target_modules": [], "peft_version": version}
    config |= {"target_parameters": ["mlp.experts.gate_up_proj"]}
    (path / "adapter_config.json").write_text(json.dumps(config))
    return path


@pytest.mark.parametrize("versions", [("0.18.1", "0.19.0"), ("0.19.0", None)])
def test_square_experts_of_two_orientations_do_not_add_up(
    tmp_path: Path, versions: tuple[str, str | None]
) -> None:
    inputs = [given(experts(tmp_path / str(n), n, v)) for n, v in enumerate(versions)]
    with pytest.raises(NotMergeable, match="square"):
        composed(inputs)


def test_experts_of_one_orientation_keep_it(tmp_path: Path) -> None:
    inputs = [given(experts(tmp_path / v, n, v)) for n, v in enumerate(("0.19.1", "0.21.2"))]
    assert composed(inputs)[0].config["peft_version"] == "0.19.1"


# --- many modules -----------------------------------------------------------------------------


@pytest.mark.slow
def test_what_is_made_of_many_modules_can_be_read_again(tmp_path: Path) -> None:
    """A rank and an alpha for each of them: as many patterns, which are matched under a limit."""
    modules = [f"model.layers.{n}.self_attn.q_proj" for n in range(900)]
    dice = np.random.default_rng(0)
    arrays = {}
    for module in modules:
        b = dice.standard_normal((5, 4))
        b[:, int(dice.integers(1, 4)) :] *= 1e-6
        arrays[f"base_model.model.{module}.lora_B.weight"] = b.astype(np.float32)
        a = dice.standard_normal((4, 6)).astype(np.float32)
        arrays[f"base_model.model.{module}.lora_A.weight"] = a
    path = lora(tmp_path / "a", 1, rank=4, target_modules=["q_proj"])
    save_file(arrays, path / "adapter_model.safetensors", {"format": "pt"})
    api.compose([path], energy=0.99, out=tmp_path / "out")
    found = given(tmp_path / "out")
    assert len(found.adapter.config["rank_pattern"]) > 300
    assert len(composed([found])[1].modules) == len(modules)
