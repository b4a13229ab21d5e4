"""One file or an index and its shards: taken when they say the same, refused when they do not."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from adapterhub.errors import InvalidTensorFile, NotFound
from adapterhub.tensorfile import (
    ArrayTensor,
    Checkpoint,
    Spec,
    index_json,
    open_checkpoint,
    plan_shards,
    write_file,
)

ONE, TWO = "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"
INDEX = "model.safetensors.index.json"


def write(path: Path, *names: str, **metadata: str) -> None:
    tensors = {name: ArrayTensor(np.full(3, ord(name[0]), np.uint8)) for name in names}
    write_file(path, tensors, metadata)


def write_index(directory: Path, weight_map: Any, **more: Any) -> None:
    (directory / INDEX).write_text(json.dumps({"weight_map": weight_map, **more}))


@pytest.fixture
def sharded(tmp_path: Path) -> Path:
    write(tmp_path / ONE, "c", "a", format="pt", part="1")
    write(tmp_path / TWO, "b", format="pt", part="2", extra="x")
    write_index(tmp_path, {"a": ONE, "b": TWO, "c": ONE}, metadata={"total_size": 9.0})
    return tmp_path


def refused(directory: Path, stem: str = "model") -> InvalidTensorFile:
    with pytest.raises(InvalidTensorFile) as caught:
        open_checkpoint(directory, stem)
    assert caught.value.remedy
    return caught.value


def contents(checkpoint: Checkpoint) -> dict[str, list[int]]:
    return {name: tensor.read().tolist() for name, tensor in checkpoint.tensors.items()}


def test_one_file(tmp_path: Path) -> None:
    write(tmp_path / "adapter_model.safetensors", "b", "a", format="pt")
    found = open_checkpoint(str(tmp_path), "adapter_model")
    assert found.files == (tmp_path / "adapter_model.safetensors",)
    assert found.directory == tmp_path and dict(found.metadata) == {"format": "pt"}
    assert list(found.tensors) == ["b", "a"]


def test_shards(sharded: Path) -> None:
    found = open_checkpoint(sharded)
    assert found.files == (sharded / ONE, sharded / TWO)
    assert contents(found) == {"c": [99] * 3, "a": [97] * 3, "b": [98] * 3}
    assert list(found.tensors) == ["c", "a", "b"]


def test_metadata_on_which_the_shards_agree(sharded: Path) -> None:
    assert dict(open_checkpoint(sharded).metadata) == {"format": "pt", "extra": "x"}


def test_what_the_writer_plans_can_be_opened(tmp_path: Path) -> None:
    specs = [Spec(name, "U8", (3,)) for name in "abcde"]
    layouts = plan_shards(specs, max_shard_bytes=6)
    for layout in layouts:
        write(tmp_path / layout.filename, *(spec.name for spec in layout.specs))
    (tmp_path / INDEX).write_bytes(index_json(layouts))
    assert list(open_checkpoint(tmp_path).tensors) == list("abcde")


def test_an_index_that_means_the_single_file(tmp_path: Path) -> None:
    write(tmp_path / "model.safetensors", "a")
    write_index(tmp_path, {"a": "model.safetensors"})
    assert list(open_checkpoint(tmp_path).tensors) == ["a"]


def test_links_as_in_the_hub_cache(tmp_path: Path) -> None:
    write(tmp_path / "blob", "a")
    (tmp_path / "snapshot").mkdir()
    (tmp_path / "snapshot" / "model.safetensors").symlink_to("../blob")
    assert list(open_checkpoint(tmp_path / "snapshot").tensors) == ["a"]


def test_link_to_nothing(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").symlink_to("gone")
    with pytest.raises(NotFound, match=r"model\.safetensors: no such file"):
        open_checkpoint(tmp_path)


# --- what does not fit together ---------------------------------------------------------------


def test_both_and_the_index_means_others(sharded: Path) -> None:
    write(sharded / "model.safetensors", "a")
    assert "are both there, and the index names other files" in refused(sharded).message


def test_shard_that_is_not_there(sharded: Path) -> None:
    (sharded / TWO).unlink()
    error = refused(sharded)
    assert f'names the file "{TWO}", which is not there' in error.message
    assert error.remedy == "download the missing file"


def test_tensor_in_the_other_shard(sharded: Path) -> None:
    write_index(sharded, {"a": ONE, "b": ONE, "c": TWO})
    assert f'tensor "b" should be in "{ONE}" and is in {TWO}' in refused(sharded).message


def test_tensor_that_no_shard_has(sharded: Path) -> None:
    write_index(sharded, {"a": ONE, "b": TWO, "c": ONE, "d": TWO})
    assert f'"d" should be in "{TWO}" and is in none of the files' in refused(sharded).message


def test_tensor_that_the_index_lacks(sharded: Path) -> None:
    write_index(sharded, {"a": ONE, "b": TWO})
    assert f'tensor "c" of {ONE} is missing from the weight_map' in refused(sharded).message


def test_tensor_in_two_shards(sharded: Path) -> None:
    write(sharded / TWO, "a", "b")
    assert f'tensor "a" is in both {ONE} and {TWO}' in refused(sharded).message


@pytest.mark.parametrize(
    "file",
    [
        "../model.safetensors",
        "/etc/model.safetensors",
        "a/b.safetensors",
        "a\\b.safetensors",
        "..",
        "",
        ".hidden.safetensors",
        "model.bin",
        "nul\0.safetensors",
        7,
        None,
        ["x.safetensors"],
    ],
)
def test_index_leads_elsewhere(sharded: Path, file: object) -> None:
    write_index(sharded, {"a": ONE, "b": file})
    error = refused(sharded)
    assert 'tensor "b" is said to be in' in error.message
    assert "no plain name of a .safetensors file beside the index" in error.message


@pytest.mark.parametrize(
    ("text", "reason", "offset"),
    [
        (b"", "is not JSON: Expecting value", 0),
        (b'{"\xc3\xa4": x}', "is not JSON: Expecting value", 7),
        (b'{"weight_map": "\xff"}', "is not UTF-8", 16),
        (b"[]", "is not a JSON object", 0),
        (b"{}", "has no weight_map", 0),
        (b'{"weight_map": {}}', "has no weight_map", 0),
        (b'{"weight_map": []}', "has no weight_map", 0),
        (b'{"weight_map": {"a": "x", "a": "y"}}', "the key 'a' stands twice", 0),
        (b'{"metadata": {"total_size": NaN}}', "NaN is not", 0),
        (b'{"a":' + b"[" * 100_000, "nested too deeply", 0),
    ],
)
def test_damaged_index(sharded: Path, text: bytes, reason: str, offset: int) -> None:
    (sharded / INDEX).write_bytes(text)
    error = refused(sharded)
    assert reason in error.message and error.offset == offset


# --- nothing to open --------------------------------------------------------------------------


def test_no_directory(tmp_path: Path) -> None:
    with pytest.raises(NotFound, match="no such directory"):
        open_checkpoint(tmp_path / "no")


def test_no_weights(tmp_path: Path) -> None:
    assert "no model.safetensors and no index of shards" in refused(tmp_path).message


def test_pickles_are_named_with_the_command_that_converts_them(tmp_path: Path) -> None:
    (tmp_path / "pytorch_model.bin").touch()
    error = refused(tmp_path)
    assert '"pytorch_model.bin" is a pickle' in error.message
    assert f"AutoModel.from_pretrained('{tmp_path}').save_pretrained('{tmp_path}')" in error.remedy
    assert "save_pretrained" in refused(tmp_path, "adapter_model").remedy


def test_shards_without_index(tmp_path: Path) -> None:
    write(tmp_path / ONE, "a")
    error = refused(tmp_path)
    assert f'though there is "{ONE}"' in error.message and INDEX in error.remedy


def test_other_files(tmp_path: Path) -> None:
    (tmp_path / "model.gguf").touch()
    assert 'but "model.gguf"' in refused(tmp_path).message
