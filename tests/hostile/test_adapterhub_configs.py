"""AdapterHub's configs and tensors made to mislead: refused by name, before anything runs."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from patience import ends
from safetensors.numpy import load_file, save_file

from adapterhub import formats
from adapterhub.errors import AdapterHubError
from adapterhub.registry import inspection
from adapterhub.runtime.hooks import hooked

pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

GOLDEN = Path(__file__).parents[1] / "golden" / "adapters"
Change = Callable[[dict[str, Any]], Any]


@pytest.fixture(scope="module")
def models() -> dict[str, Any]:
    return {
        name: transformers.AutoModel.from_pretrained(GOLDEN / name / "base")
        for name in ("bert", "bert_lm")
    }


def changed(
    case: str, place: Path, config: Change | None = None, tensors: Change | None = None
) -> Path:
    """A copy of a golden adapter with another config or other tensors."""
    shutil.copytree(GOLDEN / case, place)
    if config:
        given = json.loads((place / "adapter_config.json").read_text())
        config(given["config"])
        (place / "adapter_config.json").write_text(json.dumps(given))
    if tensors:
        held = load_file(place / "adapter.safetensors")
        tensors(held)
        save_file(held, place / "adapter.safetensors")
    return place


def refusal(models: dict[str, Any], case: str, path: Path) -> str:
    """What is said by the reader, or by the plan on a live model."""
    with ends(), pytest.raises(AdapterHubError) as caught:
        adapter = inspection.require(formats.read(path))
        way = hooked(adapter.method)
        assert way is not None
        way.plan(models[case.partition("/")[0]], adapter, 1.0)
    text = str(caught.value)
    assert caught.value.remedy and text.replace("\n", "").isprintable() and len(text) < 6000
    return text


def of(field: str, value: Any) -> Change:
    return lambda config: config.__setitem__(field, value)


def in_member(number: int, field: str, value: Any) -> Change:
    return lambda config: config["configs"][number].__setitem__(field, value)


ODD_NUMBERS = (None, True, "x", [], [3], {}, {"a": 1})


@pytest.mark.parametrize("case", ["bert/houlsby", "bert_lm/compacter", "bert/prefix", "bert/mam"])
@pytest.mark.parametrize("value", [3, "x", [None], ["a"], [[1]], [1.5], {"a": 1}, [-1]])
def test_layers_to_leave_out(models: Any, tmp_path: Path, case: str, value: Any) -> None:
    way = in_member(1, "leave_out", value) if case == "bert/mam" else of("leave_out", value)
    text = refusal(models, case, changed(case, tmp_path / "a", way))
    assert "leave_out" in text


@pytest.mark.parametrize("value", [0, -2, 1e9, "x", [2], {"default": 0}, {"0": "x"}, {"a": None}])
@pytest.mark.parametrize("case", ["bert/houlsby", "bert/mam"])
def test_reduction_factors(models: Any, tmp_path: Path, case: str, value: Any) -> None:
    field = "reduction_factor"
    way = in_member(1, field, value) if case == "bert/mam" else of(field, value)
    assert field in refusal(models, case, changed(case, tmp_path / "a", way))


@pytest.mark.parametrize("value", [3, {"0": 2, "default": 4}])
def test_reduction_factors_that_the_tensors_contradict(
    models: Any, tmp_path: Path, value: Any
) -> None:
    path = changed("bert/houlsby", tmp_path / "a", of("reduction_factor", value))
    text = refusal(models, "bert/houlsby", path)
    assert "it is 4 wide, reduction_factor in the config makes that 2" in text


@pytest.mark.parametrize("value", [10**300, "both", [], {"a": 1}, True])
@pytest.mark.parametrize("case", ["bert/houlsby", "bert/unipelt"])
def test_scalings(models: Any, tmp_path: Path, case: str, value: Any) -> None:
    way = of("scaling", value) if case == "bert/houlsby" else in_member(1, "scaling", value)
    assert "scaling" in refusal(models, case, changed(case, tmp_path / "a", way))


@pytest.mark.parametrize("value", [0, 1, 3, 10**9, -1, "x", 10**300])
def test_dimensions_of_compacters(models: Any, tmp_path: Path, value: Any) -> None:
    path = changed("bert_lm/compacter", tmp_path / "a", of("phm_dim", value))
    assert "phm_dim" in refusal(models, "bert_lm/compacter", path)


@pytest.mark.parametrize("value", [0, -1, 10**9, "x", [3], {}])
def test_lengths_of_prefixes(models: Any, tmp_path: Path, value: Any) -> None:
    path = changed("bert/prefix", tmp_path / "a", of("prefix_length", value))
    assert refusal(models, "bert/prefix", path)


@pytest.mark.parametrize("value", ODD_NUMBERS)
@pytest.mark.parametrize("field", ["alpha", "r"])
def test_figures_of_a_unions_lora(models: Any, tmp_path: Path, field: str, value: Any) -> None:
    path = changed("bert/unipelt", tmp_path / "a", in_member(2, field, value))
    assert field in refusal(models, "bert/unipelt", path)


def test_a_unions_lora_of_another_rank(models: Any, tmp_path: Path) -> None:
    path = changed("bert/unipelt", tmp_path / "a", in_member(2, "r", 3))
    assert "has rank 2, config says r=3" in refusal(models, "bert/unipelt", path)


def nested(config: dict[str, Any]) -> None:
    inner: Any = {"architecture": "union", "configs": []}
    for _ in range(40):
        inner = {"architecture": "union", "configs": [inner]}
    config["configs"][1] = inner


@pytest.mark.parametrize(
    "way",
    [
        nested,
        lambda config: config["configs"].extend(config["configs"] * 4),
        lambda config: config["configs"].extend(config["configs"] * 3000),
        lambda config: config["configs"].append(None),
        lambda config: config["configs"].append([]),
        lambda config: config.__setitem__("configs", None),
        lambda config: config.__setitem__("configs", "x" * 100_000),
        lambda config: config["configs"][0].__setitem__("architecture", {"a": []}),
    ],
)
def test_unions_of_too_much(models: Any, tmp_path: Path, way: Change) -> None:
    assert refusal(models, "bert/unipelt", changed("bert/unipelt", tmp_path / "a", way))


@pytest.mark.parametrize("name", ["prelu", "xielu", "nosuch", "", "\x1b[31m", "x" * 10_000])
def test_non_linearities(models: Any, tmp_path: Path, name: str) -> None:
    path = changed("bert/houlsby", tmp_path / "a", of("non_linearity", name))
    assert "non-linearity" in refusal(models, "bert/houlsby", path)


@pytest.mark.parametrize(
    ("case", "field"),
    [("bert/houlsby", "mh_adapter"), ("bert/mam", "output_adapter"), ("bert/nice", "inv_adapter")],
)
def test_modules_that_the_config_does_not_ask_for(
    models: Any, tmp_path: Path, case: str, field: str
) -> None:
    way = in_member(1, field, False) if case == "bert/mam" else of(field, None)
    text = refusal(models, case, changed(case, tmp_path / "a", way))
    assert "asks for none there" in text or "invertible" in text


# --- tensors ----------------------------------------------------------------------------------

CASES = ["bert/houlsby", "bert/norms", "bert/gated", "bert/nice", "bert_lm/compacter"]
CASES += ["bert/compacter_own", "bert_lm/compacter_all", "bert/prefix_gated", "bert/unipelt"]


def names(case: str) -> list[str]:
    """Of the first layer's tensors and of those of none; a pool's are told once."""
    found = sorted(load_file(GOLDEN / case / "adapter.safetensors"))
    return [n for n in found if "layer.1." not in n and "pool" not in n]


def ends_alike(name: str) -> Callable[[str], bool]:
    """The pool is saved again with every layer."""
    end = name.partition("prefix_tunings.")[2]
    return lambda other: other == name or (bool(end) and other.endswith(end))


@pytest.mark.parametrize("case", CASES)
def test_a_tensor_that_is_missing(models: Any, tmp_path: Path, case: str) -> None:
    again = ("adapter_norm_before", "adapter_down.0") if case == "bert/norms" else ()
    for number, name in enumerate(names(case)):
        if any(part in name for part in again):
            continue  # each stands there under two names

        def drop(held: dict[str, Any], name: str = name) -> None:
            for other in filter(ends_alike(name), list(held)):
                del held[other]

        assert refusal(models, case, changed(case, tmp_path / str(number), tensors=drop)), name


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_tensors_of_other_shapes(models: Any, tmp_path: Path, case: str) -> None:
    for number, name in enumerate(names(case)):
        shape = load_file(GOLDEN / case / "adapter.safetensors")[name].shape
        others = {(), (0,), (*shape, 1), tuple(size + 1 for size in shape), (5, 5, 5, 5)} - {shape}
        for count, other in enumerate(sorted(others)):

            def reshape(held: dict[str, Any], name: str = name, other: Any = other) -> None:
                for key in filter(ends_alike(name), list(held)):
                    held[key] = np.ones(other, np.float32)

            path = changed(case, tmp_path / f"{number}-{count}", tensors=reshape)
            assert refusal(models, case, path), (name, other)


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("value", [np.nan, -np.inf, np.int64(3), np.bool_(True), np.complex64(1)])
def test_values_that_are_no_weights(models: Any, tmp_path: Path, case: str, value: Any) -> None:
    for number, name in enumerate(names(case)):

        def put(held: dict[str, Any], name: str = name) -> None:
            for key in filter(ends_alike(name), list(held)):
                held[key] = np.full(held[key].shape, value, None if value == value else np.float32)

        path = changed(case, tmp_path / str(number), tensors=put)
        assert refusal(models, case, path), name


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize(
    "rename",
    [
        lambda name: name + "x",
        lambda name: name + ".more",
        lambda name: name.replace(".golden.", "."),
        lambda name: name.replace(".golden.", ".other."),
        lambda name: f"../../{name}",
        lambda name: name.replace("layer.0", "layer.00"),
        lambda name: name.replace("layer.0", "layer.99"),
        lambda name: name.replace("layer.0", "layer./etc/passwd"),
        lambda name: f"bert.bert.{name}",
    ],
)
def test_tensors_of_other_names(models: Any, tmp_path: Path, case: str, rename: Any) -> None:
    pooled = "pool" if "prefix" in case or "unipelt" in case else ""
    found = sorted(load_file(GOLDEN / case / "adapter.safetensors"))
    chosen = [n for n in found if "layer.0." in n and (not pooled or pooled in n)][:2]
    for number, name in enumerate(chosen or found[:2]):

        def renamed(held: dict[str, Any], name: str = name) -> None:
            held[rename(name)] = held.pop(name)

        if rename(name) != name:
            path = changed(case, tmp_path / str(number), tensors=renamed)
            assert refusal(models, case, path), name
