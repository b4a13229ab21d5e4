"""Native configs and tensors made to hang, to flood or to be passed over: refused at once."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from patience import ends

from adapterhub import formats
from adapterhub.errors import AdapterHubError
from adapterhub.registry import inspection
from adapterhub.tensorfile import ArrayTensor, write_file

Arrays = dict[str, Any]
M = "model.layers.0.mlp.down_proj"


def numbers(*shape: int) -> Any:
    return np.linspace(0.1, 1, int(np.prod(shape))).reshape(shape).astype(np.float32)


SPARSE: Arrays = {
    f"{M}:weight.indices": np.array([1, 5, 9], np.int64),
    f"{M}:weight.values": numbers(3),
}
SHAPES: dict[str, Any] = {"shapes": {f"{M}.weight": [8, 8]}}
SUBSPACE: Arrays = {":intrinsic_vector": numbers(4), f"{M}:weight.scale": numbers(1)}
SAID: dict[str, Any] = {"algorithm": "fastfood-v1", "seed": 3, **SHAPES}
SOUP: Arrays = {
    f"{M}.ExpertSoup.MoA_{side}.deepspeed_experts.{k}.{what}": numbers(*shape)
    for side, matrix in (("A", (2, 8)), ("B", (8, 2)))
    for k in range(2)
    for what, shape in (("weight", matrix), ("bias", matrix[:1]))
}
LADDER: Arrays = {
    ":first_down.weight": numbers(4, 8),
    ":norm.weight": numbers(4),
    ":up.weight": numbers(8, 4),
    "model.layers.0:down.weight": numbers(4, 8),
    "model.layers.0:gate": numbers(1),
    "model.layers.0:layer.mlp.weight": numbers(4, 4),
}
METHODS: dict[str, tuple[dict[str, Any], Arrays]] = {
    "fishmask": (SHAPES, SPARSE),
    "diff_pruning": (SHAPES, SPARSE),
    "intrinsic_said": (SAID, SUBSPACE),
    "krona": ({}, {f"{M}:krona_A": numbers(2, 2), f"{M}:krona_B": numbers(4, 4)}),
    "adamix": ({}, SOUP),
    "ladder_side": ({"reduction_factor": 2, "output": "model.norm"}, LADDER),
}


def save(place: Path, method: str, fields: dict[str, Any], arrays: Arrays) -> Path:
    place.mkdir(exist_ok=True)
    config = {"adapterhub": 1, "method": method, **fields}
    (place / "adapter_config.json").write_text(json.dumps(config))
    tensors = {name: ArrayTensor(value) for name, value in arrays.items()}
    write_file(place / "adapter_model.safetensors", tensors)
    return place


def refusal(path: Path) -> str:
    """Of a reading, which ends."""
    with ends(), pytest.raises(AdapterHubError) as caught:
        inspection.require(formats.read(path))
    text = str(caught.value)
    assert caught.value.remedy and text.replace("\n", "").isprintable() and len(text) < 6000
    return text


@pytest.mark.parametrize("method", METHODS)
def test_the_plain_ones_are_read(tmp_path: Path, method: str) -> None:
    assert inspection.require(formats.read(save(tmp_path / "a", method, *METHODS[method])))


FIGURES = [
    ("intrinsic_said", "intrinsic_dimension", 10**12),
    ("intrinsic_said", "intrinsic_dimension", 5),
    ("intrinsic_said", "seed", 2**64),
    ("intrinsic_said", "seed", -1),
    ("adamix", "num_experts", 10**9),
    ("adamix", "num_experts", 0),
    ("adamix", "reduction_factor", 0),
    ("adamix", "leave_out", ["a"]),
    ("krona", "scaling", 10**300),
    ("krona", "scaling", "x"),
    ("krona", "target_modules", {"a": 1}),
    ("ladder_side", "reduction_factor", 10**9),
    ("ladder_side", "reduction_factor", 0),
    ("ladder_side", "reduction_factor", -2),
    ("ladder_side", "gate_temperature", 0),
]


@pytest.mark.parametrize(("method", "field", "value"), FIGURES)
def test_absurd_figures(tmp_path: Path, method: str, field: str, value: Any) -> None:
    fields, arrays = METHODS[method]
    assert refusal(save(tmp_path / "a", method, {**fields, field: value}, arrays))


WRONG_SHAPES: list[Any] = [
    *([], [8], [8, 8, 1, 1, 1, 1], [0, 64], [-8, -8], [8.5, 8], ["8", 8], [[8, 8]], None, 64),
    *([1 << 31, 1 << 31], [10**9] * 5, [2**63, 1], [10**300, 1], [3, 3]),
]


@pytest.mark.parametrize("shape", WRONG_SHAPES, ids=lambda shape: str(shape)[:30])
def test_shapes_that_cannot_be(tmp_path: Path, shape: Any) -> None:
    if shape == [8]:  # a weight of a norm, for all that shows here
        shape = [5]
    path = save(tmp_path / "a", "fishmask", {"shapes": {f"{M}.weight": shape}}, SPARSE)
    assert refusal(path)


@pytest.mark.slow
@pytest.mark.parametrize("method", ["fishmask", "diff_pruning", "intrinsic_said"])
@pytest.mark.parametrize("count", [90_000, 110_000])
def test_shapes_of_a_hundred_thousand_others(tmp_path: Path, method: str, count: int) -> None:
    fields, arrays = METHODS[method]
    many = {f"m{n}.weight": [1] for n in range(count)}
    path = save(tmp_path / "a", method, {**fields, "shapes": {**SHAPES["shapes"], **many}}, arrays)
    assert "shapes" in refusal(path)


@pytest.mark.slow
def test_a_hundred_thousand_factors(tmp_path: Path) -> None:
    many = {str(n): 2 for n in range(100_000)}
    path = save(tmp_path / "a", "adamix", {"reduction_factor": many}, SOUP)
    assert "expected at most 10000 fields" in refusal(path)


@pytest.mark.parametrize(
    "indices", [[5, 1], [1, 1], [-1, 3], [3, 64], [0, 2**62], [-(2**63), 0], [2**63 - 1, 3]]
)
@pytest.mark.parametrize("method", ["fishmask", "diff_pruning"])
def test_indices_out_of_order_or_range(tmp_path: Path, method: str, indices: list[int]) -> None:
    arrays = {
        f"{M}:weight.indices": np.array(indices, np.int64),
        f"{M}:weight.values": numbers(len(indices)),
    }
    assert "indices" in refusal(save(tmp_path / "a", method, SHAPES, arrays))


STRAYS = [
    ("fishmask", {":weight.indices": SPARSE[f"{M}:weight.indices"]}, "belongs to no module"),
    ("diff_pruning", {":weight.values": numbers(3)}, "belongs to no module"),
    ("krona", {":krona_A": numbers(2, 2)}, "belongs to no module"),
    ("fishmask", {f"{M}:weight.more": numbers(3)}, "weight.more"),
    ("krona", {f"{M}::krona_A": numbers(2, 2)}, "names"),
    ("krona", {"a:b:c": numbers(2, 2)}, "names"),
    (
        "adamix",
        {f"{M}.ExpertSoup.MoA_A.deepspeed_experts.-1.weight": numbers(2, 8)},
        "none of AdaMix's",
    ),
    ("adamix", {f"{M}.ExpertSoup.MoA_C.deepspeed_experts.0.weight": numbers(2, 8)}, "MoA_C"),
    (
        "adamix",
        {f"{M}.ExpertSoup.MoA_A.deepspeed_experts.9999.weight": numbers(2, 8)},
        "lacks expert 2",
    ),
    ("ladder_side", {":first_down.weight": numbers(4)}, "expected a matrix"),
    ("ladder_side", {":first_down.weight": numbers(4, 8, 1)}, "expected a matrix"),
    ("ladder_side", {":stray": numbers(4)}, "stray"),
]


@pytest.mark.parametrize(("method", "more", "said"), STRAYS)
def test_no_tensor_is_passed_over(tmp_path: Path, method: str, more: Arrays, said: str) -> None:
    fields, arrays = METHODS[method]
    assert said in refusal(save(tmp_path / "a", method, fields, {**arrays, **more}))


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("value", [np.nan, np.inf, np.bool_(True), np.complex64(1)])
def test_values_that_are_no_weights(tmp_path: Path, method: str, value: Any) -> None:
    fields, arrays = METHODS[method]
    for number, name in enumerate(arrays):
        if not name.endswith("indices"):
            kind = np.float32 if isinstance(value, float) else None
            odd = {**arrays, name: np.full(arrays[name].shape, value, kind)}
            assert refusal(save(tmp_path / str(number), method, fields, odd)), name
