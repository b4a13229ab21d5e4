"""adapterhub's own spelling, and plain state dicts of biases: both ways, and hostile."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import making
import numpy as np
import pytest

from adapterhub import formats
from adapterhub.adapter import Adapter, BaseClaim
from adapterhub.errors import NotSupported, PickleRefused
from adapterhub.formats import native
from adapterhub.registry import inspection
from adapterhub.tensorfile import ArrayTensor, read_header, write_file

Q = "model.layers.0.self_attn.q_proj"
SOUP = "roberta.encoder.layer.0.output"


def numbers(*shape: int) -> np.ndarray:
    return making.numbers(shape, sum(shape))


def soup(count: int = 2) -> dict[str, np.ndarray]:
    found = {}
    for k in range(count):
        found[f"{SOUP}.ExpertSoup.MoA_A.deepspeed_experts.{k}.weight"] = numbers(3, 8)
        found[f"{SOUP}.ExpertSoup.MoA_A.deepspeed_experts.{k}.bias"] = numbers(3)
        found[f"{SOUP}.ExpertSoup.MoA_B.deepspeed_experts.{k}.weight"] = numbers(8, 3)
        found[f"{SOUP}.ExpertSoup.MoA_B.deepspeed_experts.{k}.bias"] = numbers(8)
    return found


SPARSE: dict[str, np.ndarray] = {
    f"{Q}:weight.indices": np.array([0, 5, 63]),
    f"{Q}:weight.values": numbers(3),
    f"{Q}:bias.indices": np.array([7]),
    f"{Q}:bias.values": numbers(1),
}
SHAPES = {f"{Q}.weight": [8, 8], f"{Q}.bias": [8]}
SAID = {"algorithm": "fastfood-v1", "seed": 2**64 - 1, "shapes": {f"{Q}.weight": [8, 8]}}
SUBSPACE = {":intrinsic_vector": numbers(5), f"{Q}:weight.scale": numbers(1)}
KRONA = {f"{Q}:krona_A": numbers(2, 4), f"{Q}:krona_B": numbers(4, 2)}
Arrays = Mapping[str, np.ndarray]
GOOD: list[tuple[str, Arrays, dict[str, Any]]] = [
    ("bitfit", {f"{Q}.bias": numbers(8), "score.weight": numbers(3, 8)}, {}),
    ("fishmask", SPARSE, {"shapes": SHAPES, "keep_ratio": 0.005}),
    ("diff_pruning", SPARSE, {"shapes": SHAPES, "structured": True}),
    ("intrinsic_said", SUBSPACE, SAID),
    ("krona", KRONA, {"scaling": 0.5}),
    ("adamix", soup(), {"num_experts": 2, "reduction_factor": 16}),
]
COMMON = {
    "base_model_name_or_path": "owner/base",
    "revision": "abc",
    "task_type": "SEQ_CLS",
    "labels": ["no", "yes"],
}


def save(path: Path, method: Any, arrays: Arrays, **fields: Any) -> Path:
    making.config(path / "adapter_config.json", **{"adapterhub": 1, "method": method, **fields})
    tensors = {name: ArrayTensor(array) for name, array in arrays.items()}
    write_file(path / "adapter_model.safetensors", tensors)
    return path


@pytest.mark.parametrize(("method", "arrays", "fields"), GOOD, ids=[case[0] for case in GOOD])
def test_native_both_ways(
    tmp_path: Path, method: str, arrays: Arrays, fields: dict[str, Any]
) -> None:
    path = save(tmp_path / "a", method, arrays, new_field=[1], **COMMON, **fields)
    reading = formats.read(path)
    adapter = inspection.require(reading)
    assert (reading.format, adapter.method, adapter.task) == ("native", method, "SEQ_CLS")
    assert (adapter.base, adapter.labels) == (BaseClaim("owner/base", "abc"), ("no", "yes"))
    (tmp_path / "b").mkdir()
    formats.write(adapter, tmp_path / "b", to="native")
    again = inspection.require(formats.read(tmp_path / "b"))
    assert replace(again, modules={}) == replace(adapter, modules={})
    said = [json.loads((p / "adapter_config.json").read_text()) for p in (path, tmp_path / "b")]
    assert said[0] == said[1]
    found = read_header(tmp_path / "b" / "adapter_model.safetensors").tensors
    assert set(found) == set(arrays)
    for name, array in arrays.items():
        assert np.array_equal(found[name].read(), array)
    assert set(formats.spelled(adapter)) == set(arrays)


BAD: list[tuple[str, Any, Arrays, dict[str, Any], str]] = [
    ("version", "bitfit", {f"{Q}.bias": numbers(8)}, {"adapterhub": 2}, "is of version 2"),
    ("no-number", "bitfit", {f"{Q}.bias": numbers(8)}, {"adapterhub": True}, "is of version True"),
    ("method", "lora", {f"{Q}.bias": numbers(8)}, {}, '"lora", which has no native spelling'),
    ("list", ["x"], {f"{Q}.bias": numbers(8)}, {}, r"the method \['x'\]"),
    ("labels", "bitfit", {f"{Q}.bias": numbers(8)}, {"labels": "ab"}, 'labels is "ab"'),
    ("names", "bitfit", {"bias": numbers(8), "a:b:c": numbers(1)}, {}, "2 tensors have names"),
    ("roles", "bitfit", {f"{Q}.bias": numbers(8), f"{Q}:x": numbers(1)}, {}, "no biases"),
    ("matrix", "bitfit", {f"{Q}.bias": numbers(8, 1)}, {}, "is no vector"),
    ("no-bias", "bitfit", {f"{Q}.weight": numbers(8, 1)}, {}, "the weights hold no bias"),
    ("alone", "krona", {f"{Q}:krona_A": numbers(2, 4)}, {}, "has no krona_B beside it"),
    ("flat", "krona", {**KRONA, f"{Q}:krona_B": numbers(4)}, {}, r"krona_B is \[4\]"),
    ("other", "krona", {**KRONA, f"{Q}:lora_A": numbers(4)}, {}, "does not go with the tensors"),
    ("scale", "krona", KRONA, {"scaling": "x"}, 'scaling: got "x"'),
    ("no-shapes", "fishmask", SPARSE, {}, 'missing the field "shapes"'),
    (
        "half",
        "fishmask",
        SPARSE,
        {"shapes": {f"{Q}.weight": [8, 8]}},
        r"no shape for .*q_proj\.bias",
    ),
    (
        "more",
        "fishmask",
        SPARSE,
        {"shapes": {**SHAPES, "x.weight": [1]}},
        'names "x.weight", and the weights hold nothing',
    ),
    (
        "huge",
        "fishmask",
        SPARSE,
        {"shapes": {**SHAPES, f"{Q}.weight": [2**40, 2**40]}},
        "elements, at most",
    ),
    ("2d", "fishmask", SPARSE, {"shapes": {**SHAPES, f"{Q}.bias": [8, 1]}}, "has 2 dimensions"),
    ("deep", "fishmask", SPARSE, {"shapes": {**SHAPES, f"{Q}.bias": [[8]]}}, "a list of sizes"),
    (
        "seed",
        "intrinsic_said",
        SUBSPACE,
        {**SAID, "seed": -1},
        "seed: got -1, expected at least 0",
    ),
    ("algorithm", "intrinsic_said", SUBSPACE, {**SAID, "algorithm": "numpy"}, "algorithm: got"),
    (
        "dimension",
        "intrinsic_said",
        SUBSPACE,
        {**SAID, "intrinsic_dimension": 6},
        "the weights have d 5, config says intrinsic_dimension=6",
    ),
    (
        "no-vector",
        "intrinsic_said",
        {f"{Q}:weight.scale": numbers(1)},
        SAID,
        "the weights hold no intrinsic_vector",
    ),
    (
        "scales",
        "intrinsic_said",
        {**SUBSPACE, f"{Q}:weight.scale": numbers(2)},
        SAID,
        r"weight\.scale is \[2\]",
    ),
    (
        "lost",
        "adamix",
        {n: a for n, a in soup(3).items() if "MoA_B.deepspeed_experts.1.bias" not in n},
        {},
        "MoA_B lacks expert 1",
    ),
    (
        "scores",
        "adamix",
        {**soup(), f"{SOUP}.ExpertSoup.MoA_A.expert_score_weight": numbers(3)},
        {},
        "MoA_A has 2 experts, and scores of shape",
    ),
    (
        "wide",
        "adamix",
        {**soup(), f"{SOUP}.ExpertSoup.MoA_A.deepspeed_experts.1.weight": numbers(3, 9)},
        {},
        "expected",
    ),
]
INDICES = [
    (np.array([5, 0, 63]), "does not ascend strictly"),
    (np.array([0, 5, 5]), "does not ascend strictly"),
    (np.array([0, 5, 64]), "holds 64, and the parameter has 64 elements"),
    (np.array([-1, 5, 6]), "holds -1"),
    (np.array([0, 5, 6], np.int32), "is I32, expected I64"),
    (np.array([0, 5]), r"weight.values is \[3\]"),
]
BAD += [
    (f"indices{i}", "fishmask", {**SPARSE, f"{Q}:weight.indices": a}, {"shapes": SHAPES}, said)
    for i, (a, said) in enumerate(INDICES)
]


@pytest.mark.parametrize(
    ("method", "arrays", "fields", "said"), [b[1:] for b in BAD], ids=[b[0] for b in BAD]
)
def test_what_contradicts_itself_is_fatal(
    tmp_path: Path, method: Any, arrays: Arrays, fields: dict[str, Any], said: str
) -> None:
    reading = formats.read(save(tmp_path / "x", method, arrays, **fields))
    assert reading.format == "native"
    messages = [problem.message for problem in reading.fatal]
    assert any(re.search(said, message) for message in messages), messages


def test_a_config_of_peft_is_pefts(tmp_path: Path) -> None:
    path = making.config(tmp_path / "adapter_config.json", adapterhub=1, method="x", peft_type="X")
    assert formats.read(path.parent).format == "peft"


def test_missing_and_damaged_weights(tmp_path: Path) -> None:
    path = save(tmp_path / "x", "krona", KRONA)
    weights = path / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-3])
    (damage,) = formats.read(path).fatal
    assert damage.code == "invalid-tensor-file"
    weights.unlink()
    (missing,) = formats.read(path).fatal
    assert missing.message.endswith("has no adapter_model.safetensors")


def test_what_has_no_native_spelling(tmp_path: Path) -> None:
    lora = Adapter("lora", "peft", {}, {"m": {"lora_A": ArrayTensor(numbers(2, 2))}})
    with pytest.raises(NotSupported, match="'lora' has no native spelling"):
        formats.write(lora, tmp_path, to="native")
    theirs = replace(lora, method="bottleneck", format="adapterhub")
    with pytest.raises(NotSupported, match="'bottleneck' has no native spelling"):
        native.spelled(theirs)
    for module, role in (("a:b", "x"), ("m", "x:y"), ("", "replace:weight"), ("a", "replace:a.b")):
        odd = replace(lora, method="krona", modules={module: {role: ArrayTensor(numbers(1))}})
        with pytest.raises(NotSupported, match="has no native spelling"):
            native.spelled(odd)


# --- state dicts of biases --------------------------------------------------------------------


def test_biases_are_bitfit(tmp_path: Path) -> None:
    path = making.biases(tmp_path / "a")
    with pytest.raises(PickleRefused, match=r"biases\.pt is a pickle"):
        inspection.require(formats.read(path))
    reading = formats.read(path, allow_pickle=True)
    adapter = inspection.require(reading)
    assert (adapter.method, adapter.format, adapter.config) == ("bitfit", "biases", {})
    assert adapter.modules["classifier"].keys() == {"replace:weight"}
    (source,) = reading.files
    assert source.safe is not None and source.safe.name == "biases.safetensors"
    (tmp_path / "b").mkdir()
    formats.write(adapter, tmp_path / "b", to="biases")
    again = inspection.require(formats.read(tmp_path / "b"))
    assert {(m, r): t.read().tobytes() for m, r, t in again.tensors()} == {
        (m, r): t.read().tobytes() for m, r, t in adapter.tensors()
    }
    formats.write(replace(adapter, format="native"), tmp_path / "b", to="native")
    with pytest.raises(NotSupported, match="has no config"):
        formats.write(replace(adapter, config={"x": 1}), tmp_path / "b", to="biases")
    other = replace(adapter, modules={"m": {"lora_A": ArrayTensor(numbers(2))}})
    with pytest.raises(NotSupported, match=r'has no place for "m\.lora_A"'):
        formats.write(other, tmp_path / "b", to="biases")


@pytest.mark.parametrize(
    "shapes",
    [
        {"encoder.q.bias": (8,), "encoder.q.weight": (8, 8)},
        {"encoder.q.bias": (8, 1)},
        {"classifier.bias": (3,), "classifier.weight": (3, 8)},
        {"encoder.q:bias": (8,)},
    ],
)
def test_what_is_no_state_dict_of_biases(
    tmp_path: Path, shapes: Mapping[str, tuple[int, ...]]
) -> None:
    path = making.safetensors(tmp_path / "some.safetensors", shapes)
    assert formats.read(path).format == "unknown"


def test_several_files_of_biases(tmp_path: Path) -> None:
    for name in "ab":
        making.safetensors(tmp_path / f"{name}.safetensors", {"encoder.q.bias": (8,)})
    (problem,) = formats.read(tmp_path).fatal
    assert problem.code == "several"
    assert formats.members(tmp_path) == [tmp_path / f"{name}.safetensors" for name in "ab"]
