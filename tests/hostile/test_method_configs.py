"""Configs made to hang, to flood or to trick: each is answered at once, and refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from patience import ends

from adapterhub import formats
from adapterhub.adapter import Reading
from adapterhub.errors import AdapterHubError
from adapterhub.methods import TABLE, method_of
from adapterhub.registry import inspection

Maker = Callable[..., Path]
NAMES = [f"model.layers.{n}.self_attn.{name}_proj" for n in range(10) for name in "qkvo"]
VECTORS = {f"{name}.ia3_l": np.ones((4, 1), np.float32) for name in NAMES}
PAIRS = {
    f"{name}.lora_{side}.weight": np.ones((2, 2), np.float32) for name in NAMES for side in "AB"
}
HADAMARD = {
    f"{name}.hada_w{n}_{side}": np.ones((2, 2), np.float32)
    for name in NAMES
    for n in (1, 2)
    for side in "ab"
}
BOMBS = [
    "(a+)+$",
    "(a|a)*b",
    "([a-z_.0-9]+)*!",
    "(.*a){25}b",
    "((a{1,30}){1,30}){1,30}b",
    r"model\.layers\.\d+\.(([a-z])+.)+[A-Z]([a-z])+$",
    r"(\w+|\d+|\.)*!",
    "(m|mo|o|od|d|de|e|el|l|.)*!",
    "(x+x+)+y",
]


def answered(path: Path) -> tuple[Reading, AdapterHubError]:
    """The reading, and the refusal."""
    with ends():
        reading = formats.read(path)
        inspection.inspect(reading, source="x")
        with pytest.raises(AdapterHubError) as caught:
            inspection.require(reading)
    assert caught.value.remedy and caught.value.message.isprintable()
    assert len(caught.value.message) < 1000
    return reading, caught.value


@pytest.mark.parametrize("bomb", BOMBS)
@pytest.mark.parametrize(
    ("field", "tensors", "more"),
    [
        ("target_modules", PAIRS, {}),
        ("exclude_modules", PAIRS, {}),
        ("rank_pattern", PAIRS, {}),
        ("alpha_pattern", PAIRS, {}),
        ("target_modules", VECTORS, {"peft_type": "IA3"}),
        ("feedforward_modules", VECTORS, {"peft_type": "IA3"}),
        ("rank_pattern", HADAMARD, {"peft_type": "LOHA"}),
        ("alpha_pattern", HADAMARD, {"peft_type": "LOHA"}),
    ],
)
def test_regular_expression_bombs(
    peft_dir: Maker, field: str, tensors: Any, more: dict[str, Any], bomb: str
) -> None:
    value = {bomb: 2} if field.endswith("_pattern") else bomb
    _, error = answered(peft_dir(tensors, **{"target_modules": None, field: value, **more}))
    assert "too long to match" in error.message
    assert field in error.remedy or field.endswith("_pattern")


@pytest.mark.parametrize("field", ["rank_pattern", "alpha_pattern"])
def test_many_patterns_that_are_slow_together(peft_dir: Maker, field: str) -> None:
    many = {f"(.*{n}.*)+(.*x.*){{2}}": 2 for n in range(9000)}
    _, error = answered(peft_dir(PAIRS, **{field: many}))
    assert "too long" in error.message


@pytest.mark.parametrize(
    "pattern",
    [
        r".*\.(q|k)_proj",
        r"(.*\.)?self_attn\.[qkvo]_proj$",
        r"^(?!.*vision).*(?:self_attn).*(?:q_proj|k_proj|v_proj|o_proj).*$",
        r"(?:.*?(?:language|text).*?(?:self_attn|attn|mlp).*?(?:q_proj|k_proj|o_proj).*?)|"
        r"(?:\bmodel\.layers\.[\d]{1,}\.(?:self_attn|mlp)\.(?:(?:q_proj|k_proj|v_proj)))",
        r"model\.layers\.(\d+\.)*self_attn\.(q_proj|v_proj)",
        "|".join(NAMES),
    ],
)
def test_patterns_of_honest_people(peft_dir: Maker, pattern: str) -> None:
    reading = formats.read(peft_dir(PAIRS, target_modules=pattern))
    inspection.require(reading)
    assert "target-mismatch" not in [p.code for p in reading.problems]


def test_patterns_that_match_nothing_or_are_none(peft_dir: Maker) -> None:
    reading = formats.read(peft_dir(PAIRS, name="a", target_modules=".*vision.*"))
    (found,) = [p for p in reading.problems if p.code == "target-mismatch"]
    assert found.message == (
        'target_modules ".*vision.*" matches none of the 40 modules in the file'
    )
    assert not found.fatal and found.remedy
    _, error = answered(peft_dir(PAIRS, name="b", target_modules="(q_proj"))
    assert "pattern '(q_proj' of adapter_config.json cannot be used" in error.message
    assert error.remedy == "correct target_modules; it is a regular expression"
    reading = formats.read(peft_dir(PAIRS, name="c", target_modules="all-linear"))
    assert "target-mismatch" not in [p.code for p in reading.problems]


TYPES_WITH_RANK = [row for row in TABLE.values() if row.peft_type and "r" in row.fields()]


@pytest.mark.parametrize("row", TYPES_WITH_RANK, ids=lambda row: row.name)
def test_a_rank_of_a_thousand_millions(peft_dir: Maker, row: Any) -> None:
    _, error = answered(peft_dir({"q.x": np.ones(2, np.float32)}, peft_type=row.peft_type, r=10**9))
    said = "r: got 1000000000, expected at most 1048576"
    assert any(said in text for text in (error.message, *error.details))


@pytest.mark.parametrize("text", ["NaN", "1e999", "-Infinity", "1" * 5000])
@pytest.mark.parametrize("kind", ["LORA", "LOKR"])
def test_alphas_that_are_no_numbers(peft_dir: Maker, kind: str, text: str) -> None:
    path = peft_dir(PAIRS, peft_type=kind) / "adapter_config.json"
    config = json.loads(path.read_text())
    field = "lora_alpha" if kind == "LORA" else "alpha"
    path.write_text(json.dumps({**config, field: 12345}).replace("12345", text))
    _, error = answered(path)
    assert "is not valid JSON" in error.message


def test_ten_megabytes(peft_dir: Maker) -> None:
    path = peft_dir(PAIRS, note="x" * 10_000_000)
    _, error = answered(path)
    assert "larger than 4,194,304 bytes" in error.message


def test_four_megabytes_of_everything(peft_dir: Maker) -> None:
    many = {f"field {n}": [n] * 8 for n in range(40_000)}
    with ends():
        reading = formats.read(peft_dir(PAIRS, peft_type="LOKR", **many))
    (found,) = [p for p in reading.problems if p.code == "unknown-fields"]
    assert len(found.message) < 500


@pytest.mark.parametrize("depth", [500, 10_000, 1_000_000])
def test_ten_thousand_levels(peft_dir: Maker, depth: int) -> None:
    path = peft_dir(PAIRS, target_modules="DEEP") / "adapter_config.json"
    path.write_text(path.read_text().replace('"DEEP"', "[" * depth + "]" * depth))
    _, error = answered(path)
    assert "nested too deeply" in error.message or "target_modules" in error.message


def test_a_key_that_stands_twice(peft_dir: Maker) -> None:
    path = peft_dir(PAIRS) / "adapter_config.json"
    path.write_text(path.read_text().replace('"r": 2', '"r": 2, "r": 3'))
    _, error = answered(path)
    assert "the key 'r' occurs twice" in error.message


def test_a_class_to_import_is_data(peft_dir: Maker) -> None:
    mapping = {"base_model_class": "system", "parent_library": "os"}
    reading = formats.read(peft_dir(PAIRS, auto_mapping=mapping))
    adapter = inspection.require(reading)
    (found,) = [p for p in reading.problems if p.code == "auto-mapping"]
    assert not found.fatal and "never imported" in found.message
    assert found.remedy == "have that class at hand where peft loads the adapter"
    assert adapter.config["auto_mapping"] == mapping


ODD_VALUES: tuple[Any, ...] = (
    *(None, True, 0, -1, 10**300, 1.5, "", "x", "\x1b[31m", [], [None], [[1]], {}, {"a": None}),
    *({"(": 2}, {"(a|a)*[bc]": 2}, {"": 2}, [{"a": [[]]}]),
)


QUICK = ("lokr", "prompt_tuning", "shadow", "trainable_tokens", "vblora")
TYPES = [
    pytest.param(row, id=name, marks=() if name in QUICK else pytest.mark.slow)
    for name, row in TABLE.items()
    if row.peft_type
]


@pytest.mark.slow
@pytest.mark.parametrize("row", TYPES)
def test_any_value_of_any_field_of_any_type(peft_dir: Maker, row: Any) -> None:
    path = peft_dir({"q.x": np.ones((2, 2), np.float32)}, peft_type=row.peft_type)
    config = json.loads((path / "adapter_config.json").read_text())
    for field in sorted(row.fields() - {"peft_type"}):
        for value in ODD_VALUES:
            (path / "adapter_config.json").write_text(json.dumps({**config, field: value}))
            reading = formats.read(path)
            seen = inspection.inspect(reading, source="x")
            json.dumps(seen.to_dict(), allow_nan=False).encode("utf-8")
            assert all(p.message.isprintable() and len(p.message) < 2000 for p in seen.problems)
    assert method_of(row.peft_type) is row
