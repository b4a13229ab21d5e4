"""Arrays in, the same arrays and bytes out, whatever the dtype, shape, strides and byte order."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors
from safetensors.numpy import save_file

from adapterhub.errors import InvalidOption, NotFound, NotSupported
from adapterhub.tensorfile import DTYPES, ArrayTensor, FileTensor, Tensor, read_header, write_file

SHAPES: list[tuple[int, ...]] = [(), (0,), (1,), (7,), (3, 0, 2), (4, 5), (2, 3, 4), (1,) * 32]


def sample(dtype: str, shape: tuple[int, ...]) -> np.ndarray[Any, Any]:
    count = int(np.prod(shape, dtype=int))
    raw = np.random.default_rng(count).integers(0, 256, count * DTYPES[dtype].itemsize, np.uint8)
    return (raw % 2 if dtype == "BOOL" else raw).view(DTYPES[dtype]).reshape(shape)


@pytest.mark.parametrize("dtype", sorted(DTYPES))
def test_what_we_write_both_read(tmp_path: Path, dtype: str) -> None:
    arrays = {f"t{i}": sample(dtype, shape) for i, shape in enumerate(SHAPES)}
    path = tmp_path / "x.safetensors"
    write_file(path, {name: ArrayTensor(array) for name, array in arrays.items()})
    found: Any = dict(safetensors.deserialize(path.read_bytes()))
    ours = read_header(path).tensors
    assert set(found) == set(ours) == set(arrays)
    for name, array in arrays.items():
        assert (found[name]["dtype"], tuple(found[name]["shape"])) == (dtype, array.shape)
        assert bytes(found[name]["data"]) == array.tobytes()
        read = ours[name].read()
        assert (read.dtype, read.shape) == (array.dtype, array.shape)
        assert read.tobytes() == array.tobytes()


LIBRARY = ["BOOL", "U8", "I8", "I16", "U16", "F16", "I32", "U32", "F32", "F64", "I64", "U64"]


@pytest.mark.parametrize("dtype", [*LIBRARY, "C64"])
def test_what_the_library_writes_we_read(tmp_path: Path, dtype: str) -> None:
    arrays = {f"t{i}": np.asarray(sample(dtype, shape)) for i, shape in enumerate(SHAPES)}
    save_file(arrays, tmp_path / "x.safetensors", metadata={"format": "np"})
    header = read_header(tmp_path / "x.safetensors")
    assert dict(header.metadata) == {"format": "np"}
    for name, tensor in header.tensors.items():
        read = tensor.read()
        assert (read.dtype, read.shape) == (arrays[name].dtype, arrays[name].shape)
        assert read.tobytes() == arrays[name].tobytes()


def test_pieces_are_the_bytes_in_order(tmp_path: Path) -> None:
    array = np.arange(1000, dtype=np.float32)
    write_file(tmp_path / "x.safetensors", {"a": ArrayTensor(array)})
    tensors: list[Tensor] = [
        ArrayTensor(array),
        read_header(tmp_path / "x.safetensors").tensors["a"],
    ]
    for tensor in tensors:
        for size in (1, 7, 3999, 4000, 10**6):
            pieces = list(tensor.pieces(size))
            assert [len(p) for p in pieces[:-1]] == [size] * (len(pieces) - 1)
            assert b"".join(pieces) == array.tobytes()
        assert tensor.nbytes == 4000


def test_an_empty_tensor_has_no_pieces(tmp_path: Path) -> None:
    write_file(tmp_path / "x.safetensors", {"a": ArrayTensor(np.zeros((0, 3)))})
    assert list(ArrayTensor(np.zeros((0, 3))).pieces()) == []
    assert list(read_header(tmp_path / "x.safetensors").tensors["a"].pieces()) == []


@pytest.mark.parametrize(
    "array",
    [
        np.arange(6, dtype=">f4").reshape(2, 3),
        np.asfortranarray(np.arange(6, dtype="<f4").reshape(2, 3)),
        np.arange(12, dtype="<f4").reshape(2, 6)[:, ::2] / 2,
    ],
    ids=["big-endian", "fortran", "strided"],
)
def test_strides_and_byte_order_do_not_matter(array: np.ndarray[Any, Any]) -> None:
    tensor = ArrayTensor(array)
    little = np.arange(6, dtype="<f4").reshape(2, 3)
    assert tensor.dtype == "F32"
    assert b"".join(tensor.pieces(5)) == little.tobytes()
    read = tensor.read()
    assert read.dtype == little.dtype and read.flags.c_contiguous
    assert np.array_equal(read, little)


def test_what_was_read_belongs_to_the_reader() -> None:
    array = np.zeros(3, np.float32)
    ArrayTensor(array).read()[0] = 1
    assert array.tolist() == [0, 0, 0]


def test_no_such_dtype() -> None:
    with pytest.raises(InvalidOption, match="safetensors has no dtype for arrays of complex128"):
        ArrayTensor(np.zeros(2, np.complex128))
    with pytest.raises(InvalidOption, match="arrays of object"):
        ArrayTensor(np.array([None]))


@pytest.mark.parametrize("dtype", ["F4", "F6_E2M3", "F6_E3M2"])
def test_packed_values_are_bytes_only(tmp_path: Path, dtype: str) -> None:
    (tmp_path / "raw").write_bytes(b"xxabc")
    tensor = FileTensor(tmp_path / "raw", dtype, (4,), 2, 3)
    assert b"".join(tensor.pieces()) == b"abc"
    with pytest.raises(NotSupported, match=f"numpy has no arrays of {dtype}"):
        tensor.read()


def test_file_that_vanished(tmp_path: Path) -> None:
    with pytest.raises(NotFound, match="no such file"):
        FileTensor(tmp_path / "gone", "U8", (1,), 0, 1).read()
