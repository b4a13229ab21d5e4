from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from building import HIDDEN, LLAMA, arrays_of, llama, opened, pair, save_adapter, save_base, source

from adapterhub import merging as merge
from adapterhub.errors import NotFound, SchemaError
from adapterhub.tensorfile import ArrayTensor, write_file

Q0 = "model.layers.0.self_attn.q_proj"


@pytest.fixture
def merged(tmp_path: Path) -> Path:
    base = save_base(tmp_path / "base", llama(), LLAMA, shards=2)
    adapter = save_adapter(tmp_path / "adapter", pair(Q0, HIDDEN, HIDDEN))
    merge.run(merge.plan(opened(base), [source(adapter)]), tmp_path / "out")
    return tmp_path / "out"


def flip(path: Path, offset: int) -> None:
    data = bytearray(path.read_bytes())
    data[offset] ^= 1
    path.write_bytes(data)


def test_a_fresh_merge_has_no_differences(merged: Path) -> None:
    told: list[int] = []
    assert merge.differences(merged, told.append) == []
    assert sum(told) == sum(array.nbytes for array in llama().values())


def test_a_flipped_bit_in_any_tensor_is_found(merged: Path) -> None:
    for name, tensor in opened(merged).tensors.items():
        for offset in (tensor.offset, tensor.offset + tensor.nbytes - 1):
            flip(tensor.path, offset)
            found = merge.differences(merged)
            assert found[0] == f"tensor {name} has changed"
            assert found[1].startswith("the weights_root is sha256:") and len(found) == 2
            flip(tensor.path, offset)
    assert merge.differences(merged) == []


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "model.safetensors.index.json"])
def test_a_flipped_bit_in_another_file_is_found(merged: Path, name: str) -> None:
    path = merged / name
    path.write_bytes(path.read_bytes() + b" ")  # still valid JSON
    assert merge.differences(merged) == [f"{name} has changed"]


def test_what_is_gone_is_named(merged: Path) -> None:
    (merged / "tokenizer.json").unlink()
    shard = merged / "model-00002-of-00002.safetensors"
    shard.unlink()
    found = merge.differences(merged)
    assert found[0] == "tokenizer.json is missing"
    assert f'names the file "{shard.name}", which is not there' in found[1]


def test_a_truncated_shard_is_found(merged: Path) -> None:
    shard = merged / "model-00001-of-00002.safetensors"
    shard.write_bytes(shard.read_bytes()[:-1])
    (found,) = merge.differences(merged)
    assert shard.name in found


def test_tensors_too_many_too_few_and_of_other_kinds_are_named(merged: Path) -> None:
    arrays = arrays_of(merged)
    (merged / "model.safetensors.index.json").unlink()
    arrays["extra"] = np.zeros(3, np.float32)
    del arrays["model.norm.weight"]
    arrays["lm_head.weight"] = arrays["lm_head.weight"].reshape(5, 16)
    tensors = {name: ArrayTensor(array) for name, array in arrays.items()}
    write_file(merged / "model.safetensors", tensors)
    found = merge.differences(merged)
    assert found[:4] == [
        "model.safetensors.index.json is missing",
        "tensor model.norm.weight is missing",
        "tensor extra is not in the report",
        "tensor lm_head.weight has another dtype or shape",
    ]
    assert found[4].startswith("the weights_root is")


def test_a_file_that_would_change_the_tokenizer_is_named(merged: Path) -> None:
    (merged / "added_tokens.json").write_text("{}")
    (merged / "README.md").write_text("a card is nobody's concern")
    assert merge.differences(merged) == ["added_tokens.json is not in the report"]


def test_a_report_that_contradicts_itself_is_found(merged: Path) -> None:
    path = merged / "adapterhub.json"
    report = json.loads(path.read_text())
    report["weights_root"] = "sha256:" + "0" * 64
    path.write_text(json.dumps(report))
    (found,) = merge.differences(merged)
    assert found.endswith("the report says sha256:" + "0" * 64)


def test_a_directory_without_report_is_no_merge(tmp_path: Path) -> None:
    with pytest.raises(NotFound, match=r"has no adapterhub\.json"):
        merge.differences(tmp_path)


def test_a_report_cannot_point_outside(merged: Path) -> None:
    path = merged / "adapterhub.json"
    report = json.loads(path.read_text())
    report["files"]["../../etc/passwd"] = "sha256:" + "0" * 64
    path.write_text(json.dumps(report))
    with pytest.raises(SchemaError):
        merge.differences(merged)
