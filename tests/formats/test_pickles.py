"""Pickles: only with consent, only tensors, and nothing of theirs is run."""

from __future__ import annotations

import json
import os
import pickle
import pickletools
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from adapterhub import digest, formats
from adapterhub.adapter import Problem
from adapterhub.errors import AdapterHubError, InvalidAdapter, InvalidTensorFile, PickleRefused
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
    assert reading.outline is not None  # by the names in it
    assert (dict(reading.outline.ranks), reading.outline.targets) == ({"q": 2}, ("q",))


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


SAME = {
    "base_model.model.layer.0.q.lora_A.weight": torch.arange(6.0).reshape(2, 3),
    "base_model.model.layer.0.q.lora_B.weight": torch.tensor([[1.0, 0], [0, 2]]),
}
A, B = SAME


def _both(path: Path, content: Any) -> Problem:
    torch.save(content, path / "adapter_model.bin")
    (problem,) = [p for p in formats.read(path).problems if p.code == "two-weights"]
    return problem


def test_both_files_with_the_same_values(peft_dir: Callable[..., Path]) -> None:
    path = peft_dir()
    problem = _both(path, dict(reversed(SAME.items())))
    assert problem.sentence() == (
        "both adapter_model.safetensors and adapter_model.bin are present; adapter_model.bin is "
        "left aside (remove adapter_model.bin)"
    )
    assert not problem.fatal
    assert "layer.0.q" in inspection.require(formats.read(path)).modules


@pytest.mark.parametrize(
    ("content", "difference"),
    [
        (SAME | {B: SAME[B] * 2}, f'"{B}" has other values'),
        (SAME | {A: SAME[A] * 2, B: SAME[B] * 2}, f'"{A}" has other values'),
        # Equal to ==, and not the same bytes.
        (SAME | {B: SAME[B] * torch.tensor([1.0, -1])}, f'"{B}" has other values'),
        (SAME | {A: SAME[A].reshape(3, 2)}, f'"{A}" is F32 [2, 3] in the first and F32 [3, 2]'),
        (SAME | {A: SAME[A].bfloat16()}, f'"{A}" is F32 [2, 3] in the first and BF16 [2, 3] in'),
        ({A: SAME[A]}, f'only adapter_model.safetensors has "{B}"'),
        (SAME | {"a": SAME[B]}, 'only adapter_model.bin has "a"'),
    ],
)
def test_both_files_with_different_values(
    peft_dir: Callable[..., Path], content: dict[str, torch.Tensor], difference: str
) -> None:
    path = peft_dir()
    problem = _both(path, content)
    assert difference in problem.message
    one, other = (_root(file, content) for file in (path / "adapter_model.safetensors", None))
    assert problem.message.startswith(
        f"adapter_model.safetensors ({one}) and adapter_model.bin ({other}) differ: "
    )
    assert one != other
    with pytest.raises(InvalidAdapter, match="differ") as caught:
        inspection.require(formats.read(path, allow_pickle=True))
    assert caught.value.remedy == "remove the one that is out of date"


def _root(file: Path | None, content: dict[str, torch.Tensor]) -> str:
    """Over the bytes as torch has them."""
    tensors = load_file(file) if file else content
    leaves = []
    for name, tensor in tensors.items():
        dtype = {torch.float32: "F32", torch.bfloat16: "BF16"}[tensor.dtype]
        raw = tensor.contiguous().view(torch.uint8).numpy().tobytes()
        leaves.append((name, dtype, tuple(tensor.shape), digest.of_tensor(raw)))
    return digest.weights_root(leaves)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "is empty"),
        (b"PK\x03\x04", "is truncated"),
        (pickle.dumps({"a": 1}), "it holds more than tensors"),
        (b"version https://git-lfs.github.com/spec/v1\n", "is a Git-LFS pointer"),
    ],
)
def test_a_pickle_beside_the_weights_that_cannot_be_read(
    peft_dir: Callable[..., Path], content: bytes, said: str
) -> None:
    path = peft_dir()
    (path / "adapter_model.bin").write_bytes(content)
    with pytest.raises(InvalidAdapter, match=said) as caught:
        inspection.require(formats.read(path))
    assert "lies adapter_model.bin, whose content is not known" in caught.value.message
    assert caught.value.remedy == "remove adapter_model.bin if it is out of date"


def test_a_payload_beside_the_weights_does_not_run(
    peft_dir: Callable[..., Path], tmp_path: Path
) -> None:
    path, marker = peft_dir(), tmp_path / "ran"
    (path / "adapter_model.bin").write_bytes(pickle.dumps({A: Payload(marker)}))
    with pytest.raises(InvalidAdapter, match="whose content is not known"):
        inspection.require(formats.read(path))
    assert not marker.exists()


def test_a_pickle_beside_the_weights_that_is_far_too_large_is_not_read(
    peft_dir: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = peft_dir()
    monkeypatch.setattr(pickles, "load", lambda path: pytest.fail("read"))
    with (path / "adapter_model.bin").open("wb") as file:
        file.truncate(100 * 1024 * 1024)  # without a byte on disk
    with pytest.raises(InvalidAdapter, match=r"adapter_model\.bin is many times as large, and is"):
        inspection.require(formats.read(path))


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


class Call:
    """Pickles as a call of `function`, which torch's restricted loader makes."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.call = function, arguments

    def __reduce__(self) -> tuple[Any, tuple[Any, ...]]:
        return self.call


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize(
    ("call", "said"),
    [
        (Call(bytearray, 10**12), "it asks for __builtin__.bytearray, which is no tensor"),
        (Call(torch.Tensor, 3), "it asks for torch.Tensor, which is no tensor"),
        (Call(torch.FloatTensor, 10**11), "it asks for torch.FloatTensor, which is no tensor"),
        (Call(torch.UntypedStorage, 10**11), "it asks for torch.storage.UntypedStorage, which"),
        (
            Call(torch._tensor._rebuild_from_type_v2, bytearray, torch.Tensor, (10**12,), {}),
            "it asks for __builtin__.bytearray, which is no tensor",
        ),
    ],
)
def test_what_would_take_memory_or_show_it_is_not_called(
    tmp_path: Path, call: Call, said: str, zipped: bool
) -> None:
    path = tmp_path / "adapter_model.bin"
    torch.save({"a": call}, path, _use_new_zipfile_serialization=zipped)
    with pytest.raises(InvalidTensorFile) as caught:
        pickles.load(path)
    assert said in caught.value.message


def test_a_second_data_pkl_is_looked_at_too(tmp_path: Path) -> None:
    good, bad, path = (tmp_path / name for name in ("good", "bad", "adapter_model.bin"))
    torch.save(PAIR, good)
    torch.save({"a": Call(bytearray, 10**12)}, bad)
    with zipfile.ZipFile(bad) as archive:
        payload = archive.read("bad/data.pkl")
    path.write_bytes(good.read_bytes())
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("good/DATA.pkl", payload)
    with pytest.raises(InvalidTensorFile, match=r"it asks for __builtin__\.bytearray"):
        pickles.load(path)


def test_storages_that_the_file_does_not_hold(tmp_path: Path) -> None:
    """The content claims a storage, and the list of those that follow is empty."""
    path = tmp_path / "adapter_model.bin"
    torch.save({"a": torch.ones(4)}, path, _use_new_zipfile_serialization=False)
    whole = path.read_bytes()
    claimed = whole.replace(b"K\x04\x85", b"J\xff\xff\xff\x00\x85")  # the size of the tensor
    assert claimed != whole
    path.write_bytes(claimed)
    with pytest.raises(InvalidTensorFile, match="storage has wrong byte size"):
        pickles.load(path)
    with path.open("rb") as stream:
        for _ in range(4):  # magic, protocol, machine, content
            for _opcode in pickletools.genops(stream):
                pass
        head = claimed[: stream.tell()]
    path.write_bytes(head + pickle.dumps([], protocol=2))
    with pytest.raises(InvalidTensorFile, match=r"claims \d+ bytes of values, more than it"):
        pickles.load(path)


def test_tensors_with_attributes_are_read(tmp_path: Path) -> None:
    tensor = torch.arange(6.0).reshape(2, 3)
    tensor.note = "kept by torch"  # type: ignore[attr-defined]
    torch.save({"a": tensor}, tmp_path / "adapter_model.bin")
    found = pickles.load(tmp_path / "adapter_model.bin")["a"].read()
    assert found.tolist() == [[0.0, 1.0, 2.0], [3.0, 4.0, 5.0]]


def test_every_truncation_is_a_named_error(tmp_path: Path) -> None:
    path = tmp_path / "adapter_model.bin"
    for zipped in (True, False):
        torch.save(PAIR, path, _use_new_zipfile_serialization=zipped)
        whole = path.read_bytes()
        for size in range(0, len(whole), 37):
            path.write_bytes(whole[:size])
            with pytest.raises(AdapterHubError):
                pickles.load(path)


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:aa\nsize 3\n", "Git-LFS pointer"),
        (b"", "is empty"),
        (b"PK\x03\x04" + bytes(100), "is truncated"),
    ],
)
def test_damage_is_told_before_consent_is_asked_for(
    peft_dir: Callable[..., Path], data: bytes, said: str
) -> None:
    path = peft_dir()
    (path / "adapter_model.safetensors").unlink()
    (path / "adapter_model.bin").write_bytes(data)
    [problem] = formats.read(path).fatal
    assert said in problem.message
    assert problem.remedy == "git lfs pull, or download the file again"
