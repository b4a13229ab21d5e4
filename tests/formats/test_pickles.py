"""Pickles: only with consent, only tensors, and nothing of theirs is run."""

from __future__ import annotations

import json
import os
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import torch

from adapterhub import formats
from adapterhub.errors import AdapterHubError, InvalidTensorFile, PickleRefused
from adapterhub.formats import pickles
from adapterhub.registry import inspection

CONFIG = {"peft_type": "LORA", "r": 2, "base_model_name_or_path": "a/b"}
PAIR = {
    "base_model.model.q.lora_A.weight": torch.arange(6.0).reshape(2, 3),
    "base_model.model.q.lora_B.weight": torch.ones(2, 2),
}


@pytest.fixture
def pickled(tmp_path: Path) -> Callable[..., Path]:
    def make(content: Any, **options: Any) -> Path:
        (tmp_path / "adapter_config.json").write_text(json.dumps(CONFIG))
        torch.save(content, tmp_path / "adapter_model.bin", **options)
        return tmp_path

    return make


def test_without_consent_it_is_not_opened(
    pickled: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = pickled(PAIR)
    monkeypatch.setattr(pickles, "load", lambda path: pytest.fail("opened"))
    reading = formats.read(path)
    with pytest.raises(PickleRefused) as caught:
        inspection.require(reading)
    assert str(caught.value) == (
        "adapter_model.bin is a pickle, which can run code when it is read\n"
        "Remedy: --allow-pickle reads its tensors and nothing else"
    )
    assert reading.config["r"] == 2


@pytest.mark.parametrize("zipped", [True, False])
def test_with_consent_its_values_are_read(pickled: Callable[..., Path], zipped: bool) -> None:
    path = pickled(PAIR, _use_new_zipfile_serialization=zipped)
    adapter = inspection.require(formats.read(path, allow_pickle=True))
    roles = adapter.modules["q"]
    assert roles["lora_A"].read().tolist() == [[0, 1, 2], [3, 4, 5]]
    assert {t.dtype for _, _, t in adapter.tensors()} == {"F32"}


@pytest.mark.parametrize(
    ("dtype", "spelled", "numpy"),
    [
        (torch.float64, "F64", np.float64),
        (torch.float16, "F16", np.float16),
        (torch.bfloat16, "BF16", ml_dtypes.bfloat16),
        (torch.float8_e4m3fn, "F8_E4M3", ml_dtypes.float8_e4m3fn),
        (torch.float8_e5m2, "F8_E5M2", ml_dtypes.float8_e5m2),
        (torch.int64, "I64", np.int64),
        (torch.bool, "BOOL", np.bool_),
    ],
)
def test_dtypes(tmp_path: Path, dtype: torch.dtype, spelled: str, numpy: type) -> None:
    values = torch.tensor([[0.0, 1.0, -2.5], [0.1, 300.0, 1e-3]]).to(dtype)
    torch.save({"t": values.t(), "s": values[0, 1]}, tmp_path / "x.bin")
    found = pickles.load(tmp_path / "x.bin")
    expected = values.to(torch.float64).t().tolist()
    assert (found["t"].dtype, found["t"].shape) == (spelled, (3, 2))
    assert found["t"].read().dtype == np.dtype(numpy)
    assert found["t"].read().astype(np.float64).tolist() == expected
    assert found["s"].shape == ()


def test_both_files(pickled: Callable[..., Path], peft_dir: Callable[..., Path]) -> None:
    path = peft_dir()
    torch.save(PAIR, path / "adapter_model.bin")
    reading = formats.read(path, allow_pickle=True)
    assert "layer.0.q" in inspection.require(reading).modules
    (problem,) = [p for p in reading.problems if p.code == "two-weights"]
    assert problem.sentence() == (
        "both adapter_model.safetensors and adapter_model.bin are present; adapter_model.bin is "
        "left aside (remove adapter_model.bin)"
    )


class Payload:
    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch '{self.marker}'",)


@pytest.mark.parametrize("spelling", ["zip", "legacy", "plain", "nested"])
def test_a_payload_is_refused_and_does_not_run(tmp_path: Path, spelling: str) -> None:
    path, marker = tmp_path / "adapter_model.bin", tmp_path / "ran"
    bad = {**PAIR, "x": Payload(marker)}
    if spelling == "plain":
        path.write_bytes(pickle.dumps(bad["x"], protocol=2))
    else:
        content = {"state": [bad]} if spelling == "nested" else bad
        torch.save(content, path, _use_new_zipfile_serialization=spelling != "legacy")
    with pytest.raises(InvalidTensorFile) as caught:
        pickles.load(path)
    assert not marker.exists()
    assert "cannot be read as a pickle of tensors: it asks for posix.system" in str(caught.value)
    assert "weights_only" not in str(caught.value)

    # The same bytes do run where they are trusted: the payload is a real one.
    if spelling != "plain":
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(os, "system", lambda command: marker.touch())
            torch.load(path, weights_only=False)
        assert marker.exists()


def compressed(path: Path) -> None:
    torch.save({"a": torch.zeros(10_000)}, path)
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in members.items():
            archive.writestr(name, data)


def cut(path: Path) -> None:
    torch.save({"a": torch.zeros(1000)}, path)
    path.write_bytes(path.read_bytes()[:1000])


def saved(value: Any, **options: Any) -> Callable[[Path], None]:
    return lambda path: torch.save(value, path, **options)


def written(data: bytes) -> Callable[[Path], None]:
    return lambda path: path.write_bytes(data) and None  # type: ignore[func-returns-value]


POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n"


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (written(POINTER), "is a Git-LFS pointer, not the file itself"),
        (written(b""), "is empty"),
        (written(b"\x80"), "cannot be read as a pickle of tensors"),
        (written(b"PK\x03\x04" + b"x" * 100), "is truncated: a zip archive without"),
        (written(b"{}"), "cannot be read as a pickle of tensors"),
        (written(b"(" * 100_000), "cannot be read as a pickle of tensors"),
        (cut, "is truncated: a zip archive without"),
        (compressed, "is a compressed archive, which torch.save does not write"),
        (saved([torch.ones(1)]), "does not hold a dict of named tensors"),
        (saved({1: torch.ones(1)}), "does not hold a dict of named tensors"),
        (saved({"a": {"b": torch.ones(1)}}), 'holds values that are no tensors: "a"'),
        (saved({"a": 1.0, "ü": None}), 'holds values that are no tensors: "a", "\\u00fc"'),
        (
            saved({"a\x1b": torch.ones(1)}),
            'the name "a\\u001b" of a tensor holds the character U+001B',
        ),
        (saved({"a": torch.zeros(1).expand(10**6, 10**6)}), "claims the shape [1000000, 1000000]"),
        (saved({"a": torch.zeros(2, device="meta")}), '"a" is sparse, quantised or without values'),
        (saved({"a": torch.zeros(2).to_sparse()}), '"a" is sparse, quantised or without values'),
        (saved({"a": torch.zeros(2, dtype=torch.complex128)}), "torch.complex128, which safetens"),
    ],
)
def test_what_is_refused(tmp_path: Path, make: Callable[[Path], None], said: str) -> None:
    path = tmp_path / "adapter_model.bin"
    make(path)
    with pytest.raises(InvalidTensorFile) as caught:
        pickles.load(path)
    assert said in caught.value.message and str(path) in caught.value.message
    assert caught.value.remedy


def test_every_truncation_is_a_named_error(tmp_path: Path) -> None:
    path = tmp_path / "adapter_model.bin"
    for zipped in (True, False):
        torch.save(PAIR, path, _use_new_zipfile_serialization=zipped)
        whole = path.read_bytes()
        for size in range(0, len(whole), 37):
            path.write_bytes(whole[:size])
            with pytest.raises(AdapterHubError):
                pickles.load(path)
