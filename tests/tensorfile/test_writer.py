"""Layouts as plain data, compared with what transformers and safetensors do; writes that fail."""

from __future__ import annotations

import errno
import json
import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from huggingface_hub.serialization._base import split_state_dict_into_shards_factory
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file, save

from adapterhub.errors import IntegrityError, InvalidOption, OutputError
from adapterhub.tensorfile import (
    BITS,
    ArrayTensor,
    Spec,
    index_json,
    open_checkpoint,
    plan_shards,
    read_header,
    write_file,
)


def test_golden_bytes(tmp_path: Path) -> None:
    tensors = {"b": ArrayTensor(np.array([1, -2], np.float32)), "ä": ArrayTensor(np.int8(3))}
    write_file(tmp_path / "x.safetensors", tensors, {"z": "1", "format": "pt"})
    assert (tmp_path / "x.safetensors").read_bytes() == (
        b"\x98\x00\x00\x00\x00\x00\x00\x00"
        b'{"__metadata__":{"format":"pt","z":"1"},'  # 40 bytes
        b'"b":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},'  # 53
        b'"\xc3\xa4":{"dtype":"I8","shape":[],"data_offsets":[8,9]}}'  # 52
        b"       "  # 7: 152 = 0x98
        b"\x00\x00\x80\x3f\x00\x00\x00\xc0\x03"
    )


def test_same_bytes_as_the_library_where_its_order_is_ours(tmp_path: Path) -> None:
    """The library sorts by dtype, then name; given that order, both write the same file."""
    arrays = {"d": np.ones(3), "a": np.ones((2, 2), "f4"), "b": np.ones(5, "f4")}
    write_file(tmp_path / "x", {name: ArrayTensor(array) for name, array in arrays.items()})
    assert (tmp_path / "x").read_bytes() == save(arrays, metadata={"format": "pt"})


def test_order_stays_unless_it_misaligns() -> None:
    def order(*dtypes: str) -> list[str]:
        specs = [Spec(f"{i}", dtype, (3,)) for i, dtype in enumerate(dtypes)]
        (layout,) = plan_shards(specs, max_shard_bytes=None)
        for spec in layout.specs:
            assert layout.offsets[spec.name] % (BITS[spec.dtype] // 8) == 0
        return [spec.dtype for spec in layout.specs]

    assert order("F32", "BF16", "U8") == ["F32", "BF16", "U8"]
    assert order("U8", "I8", "BOOL") == ["U8", "I8", "BOOL"]
    assert order("BF16", "F32", "U8", "F64", "F16") == ["F64", "F32", "BF16", "F16", "U8"]


spec_lists = st.lists(
    st.tuples(st.sampled_from(sorted(BITS)), st.lists(st.integers(0, 5), max_size=2)), max_size=12
)


def as_specs(pairs: list[tuple[str, list[int]]]) -> list[Spec]:
    return [Spec(f"t{i:02d}", d, (*shape, 8)) for i, (d, shape) in enumerate(pairs)]


@given(spec_lists, st.integers(1, 400))
@settings(max_examples=300, deadline=None)
def test_shards_close_where_transformers_closes_them(
    pairs: list[tuple[str, list[int]]], limit: int
) -> None:
    specs = as_specs(pairs)
    if not specs:
        return
    theirs = split_state_dict_into_shards_factory(
        {spec.name: spec for spec in specs},  # type: ignore[misc]
        get_storage_size=lambda spec: spec.nbytes,  # type: ignore[attr-defined]
        filename_pattern="model{suffix}.safetensors",
        max_shard_size=limit,
    )
    ours = plan_shards(specs, max_shard_bytes=limit)
    assert {o.filename: {s.name for s in o.specs} for o in ours} == {
        name: set(tensors) for name, tensors in theirs.filename_to_tensors.items()
    }
    assert json.loads(index_json(ours))["metadata"]["total_size"] == theirs.metadata["total_size"]


@given(pairs=spec_lists)
@settings(max_examples=200, deadline=None)
def test_a_layout_is_read_back_as_planned(
    pairs: list[tuple[str, list[int]]], tmp_path_factory: pytest.TempPathFactory
) -> None:
    (layout,) = plan_shards(as_specs(pairs), max_shard_bytes=None, metadata={"k": "ü"})
    path = tmp_path_factory.getbasetemp() / "planned.safetensors"
    path.write_bytes(layout.header + bytes(layout.nbytes - len(layout.header)))
    header = read_header(path)
    assert header.data_start == len(layout.header) and header.data_start % 8 == 0
    assert {n: t.offset for n, t in header.tensors.items()} == dict(layout.offsets)
    assert sorted((t.dtype, t.shape) for t in header.tensors.values()) == sorted(
        (s.dtype, s.shape) for s in layout.specs
    )
    assert dict(header.metadata) == {"k": "ü"}


def test_names_of_shards() -> None:
    specs = [Spec(name, "U8", (10,)) for name in "abc"]
    names = [layout.filename for layout in plan_shards(specs, max_shard_bytes=20, stem="m")]
    assert names == ["m-00001-of-00002.safetensors", "m-00002-of-00002.safetensors"]
    assert [p.filename for p in plan_shards(specs, max_shard_bytes=30)] == ["model.safetensors"]
    assert [p.specs for p in plan_shards([], max_shard_bytes=30)] == [()]


def test_index_as_text() -> None:
    specs = [Spec("b", "BF16", (2, 3)), Spec("a", "F32", ())]
    layouts = plan_shards(specs, max_shard_bytes=12)
    assert index_json(layouts).decode() == (
        "{\n"
        '  "metadata": {\n'
        '    "total_parameters": 7,\n'
        '    "total_size": 16\n'
        "  },\n"
        '  "weight_map": {\n'
        '    "a": "model-00002-of-00002.safetensors",\n'
        '    "b": "model-00001-of-00002.safetensors"\n'
        "  }\n"
        "}\n"
    )


@pytest.mark.slow
def test_index_is_the_one_transformers_writes(tmp_path: Path) -> None:
    from transformers import BertConfig, BertModel

    config = BertConfig(
        hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=24,
        vocab_size=50, max_position_embeddings=20,
    )  # fmt: skip
    BertModel(config).save_pretrained(tmp_path, max_shard_size=4000)
    index = tmp_path / "model.safetensors.index.json"
    weight_map = json.loads(index.read_text())["weight_map"]
    tensors = open_checkpoint(tmp_path).tensors
    specs = [Spec(name, tensors[name].dtype, tensors[name].shape) for name in weight_map]
    by_file = sorted(specs, key=lambda spec: weight_map[spec.name])
    layouts = plan_shards(by_file, max_shard_bytes=4000)
    theirs, ours = json.loads(index.read_text()), json.loads(index_json(layouts))
    assert ours["metadata"] == theirs["metadata"]
    assert list(ours) == list(theirs) and index.read_text().endswith("}\n")


@pytest.mark.parametrize(
    ("name", "dtype", "shape", "reason"),
    [
        ("", "U8", (1,), "its name is empty|is empty"),
        ("a\n", "U8", (1,), "holds the character U\\+000A"),
        ("__metadata__", "U8", (1,), "is reserved for the metadata"),
        ("a", "F33", (1,), "dtype 'F33' is none of"),
        ("a", "U8", (-1,), "shape holds -1"),
        ("a", "F4", (3,), "is 12 bits, no whole bytes"),
    ],
)
def test_what_we_would_not_read_we_do_not_write(
    name: str, dtype: str, shape: tuple[int, ...], reason: str
) -> None:
    with pytest.raises(InvalidOption, match=reason):
        Spec(name, dtype, shape)


def test_bad_plans() -> None:
    spec = Spec("a", "U8", (1,))
    with pytest.raises(InvalidOption, match='tensor "a" is to be written twice'):
        plan_shards([spec, spec], max_shard_bytes=None)
    with pytest.raises(InvalidOption, match="a shard of at most 0 bytes holds nothing"):
        plan_shards([spec], max_shard_bytes=0)
    with pytest.raises(InvalidOption, match="metadata 'k' is not text"):
        plan_shards([spec], max_shard_bytes=None, metadata={"k": 1})  # type: ignore[dict-item]
    with pytest.raises(InvalidOption, match="lone surrogate"):
        plan_shards([spec], max_shard_bytes=None, metadata={"k": "\ud800"})
    with pytest.raises(InvalidOption, match=r"the header would have \d+ bytes"):
        plan_shards([spec], max_shard_bytes=None, metadata={"k": "x" * 100_000_000})


# --- writes -----------------------------------------------------------------------------------


class Broken:
    """A tensor whose bytes do not come as announced."""

    dtype = "U8"
    shape = (10,)
    nbytes = 10

    def __init__(self, error: BaseException | None = None) -> None:
        self.error = error

    def read(self) -> Any:
        raise NotImplementedError

    def pieces(self, size: int = 0) -> Iterator[memoryview]:
        yield memoryview(b"12345")
        if self.error:
            raise self.error


@pytest.fixture
def target(tmp_path: Path) -> Path:
    path = tmp_path / "x.safetensors"
    path.write_bytes(b"old")
    return path


def old_and_alone(path: Path) -> bool:
    return path.read_bytes() == b"old" and list(path.parent.iterdir()) == [path]


def test_it_replaces_the_old_file(target: Path) -> None:
    write_file(target, {"a": ArrayTensor(np.arange(3))})
    assert load_file(target)["a"].tolist() == [0, 1, 2]
    assert list(target.parent.iterdir()) == [target]


def test_a_tensor_with_too_few_bytes(target: Path) -> None:
    with pytest.raises(IntegrityError, match='tensor "a" gave 5 bytes, expected 10'):
        write_file(target, {"a": Broken()})
    assert old_and_alone(target)


def test_an_interrupt_leaves_nothing(target: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        write_file(target, {"a": Broken(KeyboardInterrupt())})
    assert old_and_alone(target)


@pytest.mark.parametrize("step", ["fsync", "replace"])
def test_disk_full(target: Path, step: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", fail) if step == "fsync" else monkeypatch.setattr(
        Path, "replace", fail
    )
    with pytest.raises(OutputError, match="No space left on device") as caught:
        write_file(target, {"a": ArrayTensor(np.arange(3))})
    assert "free some space" in caught.value.remedy
    assert old_and_alone(target)


def test_the_disk_has_the_bytes_before_the_name(
    target: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps: list[str] = []
    fsync, replace = os.fsync, Path.replace

    def logged_fsync(fd: int) -> None:
        steps.append("directory" if stat.S_ISDIR(os.fstat(fd).st_mode) else "file")
        fsync(fd)

    def logged_replace(self: Path, other: Path) -> Path:
        steps.append("rename")
        assert self.stat().st_size == 96 + 24
        return replace(self, other)

    monkeypatch.setattr(os, "fsync", logged_fsync)
    monkeypatch.setattr(Path, "replace", logged_replace)
    write_file(target, {"a": ArrayTensor(np.arange(3))})
    assert steps == ["file", "rename", "directory"]


def test_no_such_directory(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="No such file or directory") as caught:
        write_file(tmp_path / "no" / "x", {"a": ArrayTensor(np.arange(3))})
    assert caught.value.remedy == "create the directory first"
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match="Not a directory"):
        write_file(tmp_path / "file" / "x", {"a": ArrayTensor(np.arange(3))})


def test_no_permission(target: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(Path, "open", fail)
    with pytest.raises(OutputError, match="Permission denied") as caught:
        write_file(target, {"a": ArrayTensor(np.arange(3))})
    assert caught.value.remedy == "choose a directory that you may write to"
    monkeypatch.undo()
    assert old_and_alone(target)
