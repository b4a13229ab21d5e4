"""Biases alone, and the elements that changed most, as native adapters."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from extracting_building import BERT, GPT2, LABELLED, LLAMA, Arrays, nudged, saved, tuned
from safetensors.numpy import load_file

import adapterhub as ah
from adapterhub import formats
from adapterhub.errors import InvalidOption, NotMergeable, NotSupported

pytest.importorskip("transformers")


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ADAPTERHUB_HOME", str(tmp_path / "home"))


def merged(base: Path, adapter: Path, out: Path) -> Arrays:
    ah.merge(base, [adapter], out=out)
    return load_file(out / "model.safetensors")


def test_biases_only_are_bitfit(tmp_path: Path) -> None:
    base = saved(BERT, tmp_path / "base")
    fine = tuned(base, tmp_path / "fine", nudged("query.bias", "LayerNorm.bias"))
    report = ah.extract(base, fine, biases_only=True, out=tmp_path / "out")
    reading = formats.read(tmp_path / "out")
    assert (reading.method, reading.format, reading.fatal) == ("bitfit", "native", ())
    assert len(report.saved) == 7 and report.modules == []
    written = load_file(tmp_path / "out" / "adapter_model.safetensors")
    assert report.saved_bytes == sum(each.nbytes for each in written.values()) > 0
    found = merged(base, tmp_path / "out", tmp_path / "merged")
    for name, values in load_file(fine / "model.safetensors").items():
        assert found[name].tobytes() == values.tobytes(), name


def test_biases_only_says_what_else_changed(tmp_path: Path) -> None:
    base = saved(BERT, tmp_path / "base")
    fine = tuned(base, tmp_path / "fine", nudged("query.bias", "key.weight"))
    with pytest.raises(NotMergeable, match="2 tensors beside the biases changed") as error:
        ah.extract(base, fine, biases_only=True, out=tmp_path / "out")
    assert "encoder.layer.0.attention.self.key.weight" in error.value.details
    assert not (tmp_path / "out").exists()
    report = ah.extract(base, fine, biases_only=True, rest="drop", out=tmp_path / "out")
    assert len(report.dropped) == 2 and len(report.saved) == 2
    llama = saved(LLAMA, tmp_path / "llama")
    other = tuned(llama, tmp_path / "other", nudged("q_proj.weight"))
    with pytest.raises(NotSupported, match="no bias differs"):
        ah.extract(llama, other, biases_only=True, rest="drop", out=tmp_path / "none")


@pytest.mark.parametrize("share", [0.001, 0.05, 0.4, 1.0])
def test_sparse_takes_the_largest_changes(tmp_path: Path, share: float) -> None:
    base = saved(GPT2, tmp_path / "base")
    ends = ("c_attn.weight", "c_fc.bias", "ln_f.weight", "wte.weight")
    fine = tuned(base, tmp_path / "fine", nudged(*ends, rank=16))
    report = ah.extract(base, fine, sparse=share, out=tmp_path / "out")
    assert report.method == "fishmask" and report.saved == report.dropped == []
    old, new = (load_file(each / "model.safetensors") for each in (base, fine))
    changes = {name: (new[name] - old[name]) for name in old}
    sizes = np.sort(np.abs(np.concatenate([c.reshape(-1) for c in changes.values()])))[::-1]
    number = min(int(np.ceil(share * len(sizes))), int((sizes > 0).sum()))
    squares = np.square(sizes, dtype=np.float64)
    assert report.elements == number and report.error is not None
    assert np.isclose(report.error, np.sqrt(squares[number:].sum() / squares.sum()), atol=1e-9)
    found = merged(base, tmp_path / "out", tmp_path / "merged")
    for name, change in changes.items():
        kept = np.abs(change) >= sizes[number - 1]
        expected = np.where(kept, old[name] + change * kept, old[name])
        assert np.array_equal(found[name], expected), name
    assert formats.read(tmp_path / "out").fatal == ()


def test_sparse_counts_equal_changes_to_the_number(tmp_path: Path) -> None:
    base = saved(LLAMA, tmp_path / "base")

    def change(arrays: Arrays) -> None:
        for name in sorted(arrays):
            arrays[name] = np.zeros_like(arrays[name])
            if name.endswith("o_proj.weight"):
                arrays[name][:] = 0.5

    def zeros(arrays: Arrays) -> None:
        for name in arrays:
            arrays[name] = np.zeros_like(arrays[name])

    plain = tuned(base, tmp_path / "plain", zeros)
    fine = tuned(base, tmp_path / "fine", change)
    total = sum(a.size for a in load_file(base / "model.safetensors").values())
    ah.extract(plain, fine, sparse=7 / total, out=tmp_path / "out")
    found = load_file(tmp_path / "out" / "adapter_model.safetensors")
    values = np.concatenate([v for name, v in found.items() if name.endswith("values")])
    assert values.tolist() == [0.5] * 7


def test_a_share_is_one(tmp_path: Path) -> None:
    base = saved(LLAMA, tmp_path / "base")
    fine = tuned(base, tmp_path / "fine", nudged("q_proj.weight"))
    for share in (0, 1.5, -1):
        with pytest.raises(InvalidOption, match="sparse"):
            ah.extract(base, fine, sparse=share, out=tmp_path / "out")


@pytest.mark.parametrize("given", [{"biases_only": True}, {"sparse": 1.0}])
def test_a_new_head_is_whole(tmp_path: Path, given: dict[str, Any]) -> None:
    base = saved(BERT, tmp_path / "base")
    arrays = load_file(base / "model.safetensors")

    def change(found: Arrays) -> None:
        found |= {f"bert.{n}": a for n, a in arrays.items() if f"bert.{n}" in found}
        nudged("query.bias")(found)

    fine = tuned(saved(LABELLED, tmp_path / "start"), tmp_path / "fine", change)
    report = ah.extract(base, fine, name="made", **given)
    assert {"classifier.weight", "classifier.bias"} <= set(report.saved)
    assert report.left_out == ["pooler.dense.bias", "pooler.dense.weight"]
    ah.merge(base, ["made"], out=tmp_path / "merged")
    found = load_file(tmp_path / "merged" / "model.safetensors")
    for name, values in load_file(fine / "model.safetensors").items():
        assert np.allclose(found[name], values, atol=1e-6), name
