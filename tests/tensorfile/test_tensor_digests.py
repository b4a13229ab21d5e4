"""Digests on many threads are those of one, and those of the bytes in memory."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from adapterhub import digest
from adapterhub.errors import InvalidTensorFile
from adapterhub.tensorfile import ArrayTensor, FileTensor, read_header, tensor_digests, write_file
from adapterhub.tensorfile import hashing as hashing_module

MiB = 1024 * 1024
SIZES = [
    0, 1, 3, 100, 5000, 256 * 1024, MiB - 1, MiB, MiB + 1, 4 * MiB - 1, 4 * MiB, 4 * MiB + 1,
    9 * MiB, 0, 7, 8 * MiB, *range(300),
]  # fmt: skip


@pytest.fixture(scope="module")
def arrays() -> dict[str, np.ndarray[Any, Any]]:
    noise = np.random.default_rng(0).integers(0, 256, 10 * MiB, np.uint8)
    return {f"t{i}": noise[i : i + size] for i, size in enumerate(SIZES)}


@pytest.fixture(scope="module")
def tensors(
    arrays: dict[str, np.ndarray[Any, Any]], tmp_path_factory: pytest.TempPathFactory
) -> dict[str, FileTensor]:
    """Over two files, so that neighbours in the list may be strangers on disk."""
    found: dict[str, FileTensor] = {}
    for part in (0, 1):
        path = tmp_path_factory.mktemp("digests") / f"{part}.safetensors"
        mine = [name for i, name in enumerate(arrays) if i % 2 == part]
        write_file(path, {name: ArrayTensor(arrays[name]) for name in mine})
        found |= read_header(path).tensors
    return found


@pytest.mark.parametrize("threads", [None, 1, 2, 7])
def test_threads_do_not_change_a_digest(
    arrays: dict[str, np.ndarray[Any, Any]], tensors: dict[str, FileTensor], threads: int | None
) -> None:
    found = tensor_digests(tensors, threads=threads)
    assert list(found) == list(tensors)
    for name, value in found.items():
        assert value == digest.of_tensor(arrays[name].tobytes()), name


def test_order_and_selection_do_not_change_a_digest(tensors: dict[str, FileTensor]) -> None:
    whole = tensor_digests(tensors)
    some = dict(sorted(tensors.items(), reverse=True)[::3])
    assert tensor_digests(some) == {name: whole[name] for name in some}
    assert tensor_digests({}) == {}


def test_many_small_jobs(tensors: dict[str, FileTensor], monkeypatch: pytest.MonkeyPatch) -> None:
    whole = tensor_digests(tensors)
    monkeypatch.setattr(hashing_module, "_JOB_CHUNKS", 3)
    assert tensor_digests(tensors) == whole


def test_progress_adds_up(tensors: dict[str, FileTensor]) -> None:
    steps: list[int] = []
    tensor_digests(tensors, progress=steps.append)
    assert sum(steps) == sum(SIZES) and len(steps) > 5


def test_same_bytes_hashed_as_they_come(
    arrays: dict[str, np.ndarray[Any, Any]], tensors: dict[str, FileTensor]
) -> None:
    name = f"t{SIZES.index(9 * MiB)}"
    hasher = digest.TensorHasher()
    for piece in tensors[name].pieces(1_000_003):
        hasher.update(piece)
    assert hasher.digest() == tensor_digests(tensors)[name]


def test_file_cut_while_in_use(tmp_path: Path) -> None:
    write_file(tmp_path / "x", {"a": ArrayTensor(np.zeros(9 * MiB, np.uint8))})
    tensors = read_header(tmp_path / "x").tensors
    os.truncate(tmp_path / "x", 5 * MiB)
    with pytest.raises(InvalidTensorFile, match="it was cut while in use"):
        tensor_digests(tensors)
