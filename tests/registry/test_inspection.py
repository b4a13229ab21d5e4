"""What an inspection shows: summaries of names and ranks, and problems in the values."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from adapterhub import formats
from adapterhub.adapter import Adapter, Problem
from adapterhub.errors import InvalidAdapter, InvalidTensorFile, NotSupported, PickleRefused
from adapterhub.registry import inspection
from adapterhub.registry.values import value_problems
from adapterhub.tensorfile import ArrayTensor, FileTensor, Tensor

Maker = Callable[..., Path]


def adapter(modules: Mapping[str, Mapping[str, Any]], **config: Any) -> Adapter:
    tensors: dict[str, dict[str, Tensor]] = {
        module: {
            role: value if isinstance(value, FileTensor) else ArrayTensor(np.asarray(value))
            for role, value in roles.items()
        }
        for module, roles in modules.items()
    }
    return Adapter("lora", "peft", {"r": 2, **config}, tensors)


def pair(rank: int) -> dict[str, np.ndarray]:
    return {"lora_A": np.ones((rank, 3), np.float32), "lora_B": np.ones((2, rank), np.float32)}


# --- names ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("paths", "expected"),
    [
        ((), ()),
        (("layers.0.q", "layers.1.q", "layers.10.q"), ("layers.*.q",)),
        (("layers.0.q", "layers.0.k"), ("layers.*.k", "layers.*.q")),
        (("0.1.2", "3.4.5"), ("*.*.*",)),
        (("h1.q2", "h1.q3"), ("h1.q2", "h1.q3")),
        (("block_1.0x",), ("block_1.0x",)),
        (("classifier", "classifier"), ("classifier",)),
        (("experts.3", "3.w"), ("*.w", "experts.*")),
        (("layers.٣.q",), ("layers.*.q",)),
        (("lora_te_layers_0_fc1", "lora_te_layers_10_fc1"), ("lora_te_layers_*_fc1",)),
        (("lora_unet_to_out_0", "lora_x2_q3"), ("lora_unet_to_out_*", "lora_x2_q3")),
    ],
)
def test_starred(paths: tuple[str, ...], expected: tuple[str, ...]) -> None:
    assert inspection.starred(paths) == expected


def test_targets_and_saved() -> None:
    seen = adapter(
        {
            "layers.0.q": {**pair(2), "replace:bias": [1.0]},
            "layers.1.q": pair(2),
            "embed": {"token_rows": [[1.0]]},
            "head": {"replace:weight": [1.0]},
        }
    )
    assert inspection.targets(seen) == ("embed", "layers.*.q")
    assert inspection.saved(seen) == ("head", "layers.*.q")


# --- ranks ------------------------------------------------------------------------------------


def test_one_rank_has_no_pattern() -> None:
    seen = adapter({"q": pair(2), "k": pair(2)})
    assert inspection.rank_summary(seen) == {"min": 2, "max": 2, "pattern": {}}


def test_the_pattern_names_what_differs_from_the_usual() -> None:
    seen = adapter({"z": pair(8), "a": pair(2), "b": pair(4), "c": pair(4)})
    assert inspection.rank_summary(seen) == {"min": 2, "max": 8, "pattern": {"a": 2, "z": 8}}
    summary = inspection.rank_summary(seen)
    assert summary is not None and list(summary["pattern"]) == ["a", "z"]


def test_without_pairs_there_is_no_rank() -> None:
    assert inspection.rank_summary(adapter({"head": {"replace:weight": [1.0]}})) is None


# --- values -----------------------------------------------------------------------------------


def only(seen: Adapter) -> Problem:
    (problem,) = value_problems(seen)
    return problem


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize(
    "dtype", [np.float64, np.float32, np.float16, ml_dtypes.bfloat16, ml_dtypes.float8_e5m2]
)
def test_the_first_value_that_is_not_finite_has_an_index(value: float, dtype: Any) -> None:
    values = np.ones((2, 3, 4), dtype)
    values[1, 0, 3] = values[1, 2, 0] = value
    problem = only(adapter({"layers.0.q": {"lora_A": values}}))
    assert problem.message == "layers.0.q.lora_A holds NaN or infinity, first at [1, 0, 3]"
    assert problem.fatal and problem.code == "not-finite"


def test_it_is_found_in_a_large_tensor_too() -> None:
    values = np.zeros((1000, 1000), np.float32)  # several pieces
    values[987, 654] = np.nan
    assert "first at [987, 654]" in only(adapter({"q": {"lora_A": values}})).message
    scalar = np.array(np.nan, np.float32)
    assert "first at []" in only(adapter({"q": {"replace:x": scalar}})).message


def test_sound_values_have_no_problems() -> None:
    tiny = np.array([[0.0, 1e-45]], np.float32)
    seen = adapter(
        {
            "q": {"lora_A": np.zeros((2, 2), np.float32), "lora_B": tiny},
            "head": {"replace:weight": np.zeros(3, np.float32), "replace:n": np.array([7])},
            "none": {"lora_A": np.zeros((2, 0), np.float32)},
        }
    )
    assert value_problems(seen) == []


@pytest.mark.parametrize("role", ["lora_B", "lora_embedding_B", "base_layer.lora_B"])
def test_all_zero_b(role: str) -> None:
    zero = {role: -np.zeros((2, 2), np.float32)}
    problem = only(adapter({"q": zero, "k": zero}))
    assert problem.message == "all lora_B are zero: nothing was learned there (first: q)"
    assert not problem.fatal


def test_some_zero_b() -> None:
    zero = {"lora_B": np.zeros((2, 2), ml_dtypes.bfloat16)}
    problem = only(adapter({"a": pair(2), "q": zero, "z": pair(2)}))
    assert problem.message == "1 of 3 lora_B are zero: nothing was learned there (first: q)"


def test_values_that_cannot_be_read_are_a_problem(tmp_path: Path) -> None:
    gone = FileTensor(tmp_path / "gone", "F32", (2,), 8, 8)
    found = value_problems(
        adapter({"a": {"lora_A": [np.nan]}, "q": {"lora_A": gone}, "z": {"lora_A": [np.nan]}})
    )
    assert [p.code for p in found] == ["not-finite", "not-finite", "not-found"]
    assert all(p.fatal for p in found)
    packed = FileTensor(tmp_path / "gone", "F4", (2,), 8, 1)
    assert "numpy has no arrays of F4" in only(adapter({"q": {"lora_A": packed}})).message


# --- inspect and require ----------------------------------------------------------------------


def test_an_inspection_of_a_sound_adapter(peft_dir: Maker) -> None:
    path = peft_dir(peft_version="0.21.2", use_rslora=True)
    (path / "README.md").write_text("---\nlicense: mit\n---\n")
    seen = inspection.inspect(formats.read(path), source="x", labels=("O", "SRC"))
    shown = json.loads(json.dumps(seen.to_dict()))
    assert shown == {
        "source": "x",
        "format": "peft",
        "method": "lora",
        "variants": ["rslora"],
        "rank": {"min": 2, "max": 2, "pattern": {}, "declared": 2},
        "alpha": 4,
        "scaling": {"min": 4 / 2**0.5, "max": 4 / 2**0.5, "pattern": {}},
        "targets": ["layer.*.q"],
        "saved": [],
        "dtype": "F32",
        "parameters": 10,
        "bytes": 40,
        "task": "CAUSAL_LM",
        "labels": ["O", "SRC"],
        "modality": "language",
        "base": {"name": "owner/base", "revision": "abc123", "quantization": None},
        "candidates": [],
        "fits": None,
        "files": ["adapter_model.safetensors", "adapter_config.json"],
        "licence": "mit",
        "peft_version": "0.21.2",
        "problems": [],
    }


def test_a_damaged_adapter_is_inspected_as_far_as_it_goes(peft_dir: Maker) -> None:
    path = peft_dir(lora_alpha=True)
    weights = path / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-4])
    seen = inspection.inspect(formats.read(path), source="x")
    assert (seen.method, seen.task, seen.alpha) == ("lora", "CAUSAL_LM", None)
    assert seen.dtype is seen.parameters is seen.bytes is None
    assert seen.rank == {"min": None, "max": None, "pattern": {}, "declared": 2}
    assert "invalid-tensor-file" in [p.code for p in seen.problems]


def test_require_gives_the_error_of_the_first_problem_and_the_others_as_details(
    peft_dir: Maker,
) -> None:
    path = peft_dir(r=8)
    (path / "adapter_model.safetensors").write_bytes(b"")
    with pytest.raises(InvalidTensorFile) as caught:
        inspection.require(formats.read(path))
    assert caught.value.details == () and caught.value.remedy

    nan = {"q.lora_A.weight": np.full((2, 3), np.nan, np.float32)}
    with pytest.raises(InvalidAdapter, match="q has lora_A but no lora_B") as halved:
        inspection.require(formats.read(peft_dir(nan, name="nan")))
    assert halved.value.details == (
        "q.lora_A holds NaN or infinity, first at [0, 0] "
        "(it diverged in training: take an earlier checkpoint)",
    )


def test_require_without_values_does_not_read_them(
    peft_dir: Maker, monkeypatch: pytest.MonkeyPatch
) -> None:
    reading = formats.read(peft_dir())
    monkeypatch.setattr(FileTensor, "read", lambda self: pytest.fail("read"))
    monkeypatch.setattr(FileTensor, "pieces", lambda self, size=0: pytest.fail("read"))
    assert inspection.require(reading, values=False) is reading.adapter


def test_inspecting_imports_nothing_heavy(peft_dir: Maker) -> None:
    script = (
        "import sys; from pathlib import Path; from adapterhub import formats\n"
        "from adapterhub.registry import inspection\n"
        "inspection.inspect(formats.read(Path(sys.argv[1])), source='x')\n"
        "print(sorted({'torch', 'transformers', 'peft', 'bitsandbytes', 'click', 'sqlite_utils'}"
        " & set(sys.modules)))"
    )
    command = [sys.executable, "-c", script, str(peft_dir())]
    run = subprocess.run(command, capture_output=True, text=True, check=True)
    assert run.stdout == "[]\n"


def test_kinds_of_errors(peft_dir: Maker) -> None:
    with pytest.raises(NotSupported):
        inspection.require(formats.read(peft_dir(name="a", peft_type="DIAG")))
    pickled = peft_dir(name="b")
    (pickled / "adapter_model.safetensors").rename(pickled / "adapter_model.bin")
    with pytest.raises(PickleRefused):
        inspection.require(formats.read(pickled))
    with pytest.raises(InvalidAdapter, match=r"adapter_config\.json: r: got 0"):
        inspection.require(formats.read(peft_dir(name="c", r=0)))


def test_a_bare_config_shows_what_it_says(tmp_path: Path) -> None:
    path = tmp_path / "one.json"
    config = {"peft_type": "LORA", "r": 8, "lora_alpha": 4, "target_modules": ["v", "q"]}
    path.write_text(json.dumps({**config, "modules_to_save": ["score"], "lora_dropout": 0.1}))
    seen = inspection.inspect(formats.read(path), source="x")
    assert seen.rank == {"min": None, "max": None, "pattern": {}, "declared": 8}
    assert (seen.alpha, seen.scaling) == (4, {"min": 0.5, "max": 0.5, "pattern": {}})
    assert (seen.targets, seen.saved) == (("q", "v"), ("score",))


def test_the_declared_base_tells_the_modality(peft_dir: Maker) -> None:
    path = peft_dir(base_model_name_or_path="openai/whisper-small", task_type=None)
    assert inspection.inspect(formats.read(path), source="x").modality == "speech"


def test_weights_that_were_not_read_are_listed(peft_dir: Maker) -> None:
    path = peft_dir()
    weights = path / "adapter_model.safetensors"
    weights.rename(path / "adapter_model.bin")
    seen = inspection.inspect(formats.read(path), source="x")
    assert seen.files == ("adapter_model.bin", "adapter_config.json")
