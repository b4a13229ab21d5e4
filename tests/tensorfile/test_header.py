"""The strict reader: what it takes, and that the safetensors library takes that too."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors
from hypothesis import given, settings
from hypothesis import strategies as st

from adapterhub.errors import InvalidTensorFile, NotFound
from adapterhub.tensorfile import BITS, DTYPES, read_header

SCRATCH = Path()


@pytest.fixture(scope="module", autouse=True)
def scratch(tmp_path_factory: pytest.TempPathFactory) -> None:
    global SCRATCH
    SCRATCH = tmp_path_factory.mktemp("header")


GOLDEN = (
    b"\x98\x00\x00\x00\x00\x00\x00\x00"
    b'{"__metadata__":{"format":"pt"},'  # 32 bytes
    b'"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},'  # 53
    b'"b.weight":{"dtype":"BF16","shape":[1,3],"data_offsets":[8,14]}}'  # 64
    b"   "  # 3: 152 = 0x98
    b"\x00\x00\x80\x3f\x00\x00\x00\xc0"
    b"\x80\x3f\x00\x40\x40\x40"
)


def build(header: bytes, data: bytes = b"") -> bytes:
    return len(header).to_bytes(8, "little") + header + data


def written(content: bytes) -> Path:
    path = SCRATCH / "x.safetensors"
    path.write_bytes(content)
    return path


def test_golden_bytes() -> None:
    header = read_header(written(GOLDEN))
    assert dict(header.metadata) == {"format": "pt"}
    assert header.data_start == 160
    a, b = header.tensors["a"], header.tensors["b.weight"]
    assert (a.dtype, a.shape, a.offset, a.nbytes) == ("F32", (2,), 160, 8)
    assert (b.dtype, b.shape, b.offset, b.nbytes) == ("BF16", (1, 3), 168, 6)
    assert a.read().tolist() == [1.0, -2.0]
    assert b.read().tolist() == [[1.0, 2.0, 3.0]]


def test_the_smallest_file() -> None:
    header = read_header(written(b"\x02\x00\x00\x00\x00\x00\x00\x00{}"))
    assert dict(header.tensors) == {} and dict(header.metadata) == {}


def test_order_is_that_of_the_bytes() -> None:
    header = (
        b'{"z":{"dtype":"U8","shape":[1],"data_offsets":[1,2]},'
        b'"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},'
        b'"e":{"dtype":"U8","shape":[0],"data_offsets":[1,1]}}'
    )
    tensors = read_header(written(build(header, b"xy"))).tensors
    assert list(tensors) == ["a", "e", "z"]
    assert [bytes(t.read()) for t in tensors.values()] == [b"x", b"", b"y"]


def test_white_space_escapes_and_any_order_of_keys() -> None:
    header = (
        b'{ "\\u0061\\"\xc3\xa4" :\n{"data_offsets" : [0, 2] ,\t"shape":[ 2 ],"dtype":"I8"},'
        b'"__metadata__": {"}{][\\"": "{[\\\\"} }  '
    )
    found = read_header(written(build(header, b"\x01\xff")))
    assert found.tensors['a"ä'].read().tolist() == [1, -1]
    assert dict(found.metadata) == {'}{]["': "{[\\"}


def test_metadata_alone() -> None:
    assert read_header(written(build(b'{"__metadata__":{}}'))).metadata == {}


@pytest.mark.parametrize("dtype", sorted(BITS))
def test_every_dtype_of_the_library(dtype: str) -> None:
    entry = {"t": {"dtype": dtype, "shape": [3, 8], "data_offsets": [0, 3 * BITS[dtype]]}}
    content = build(json.dumps(entry).encode(), bytes(3 * BITS[dtype]))
    assert oracle(content) == {"t": (dtype, (3, 8), bytes(3 * BITS[dtype]))}
    assert read_header(written(content)).tensors["t"].nbytes == 3 * BITS[dtype]


def test_the_table_has_the_sizes_of_numpy() -> None:
    assert set(BITS) - set(DTYPES) == {"F4", "F6_E2M3", "F6_E3M2"}
    for name, dtype in DTYPES.items():
        assert np.zeros(1, dtype).nbytes * 8 == BITS[name]


def test_missing_file() -> None:
    with pytest.raises(NotFound, match=r"nowhere\.safetensors: no such file"):
        read_header(SCRATCH / "nowhere.safetensors")


# --- against the library, and against noise ---------------------------------------------------


def oracle(content: bytes) -> dict[str, tuple[str, tuple[int, ...], bytes]]:
    found: Any = safetensors.deserialize(content)
    return {n: (t["dtype"], tuple(t["shape"]), bytes(t["data"])) for n, t in found}


def ours(content: bytes) -> dict[str, tuple[str, tuple[int, ...], bytes]] | None:
    """None if it is refused, as only an InvalidTensorFile with a place in the file may do."""
    path = written(content)
    try:
        header = read_header(path)
    except InvalidTensorFile as error:
        assert error.offset is not None and 0 <= error.offset <= len(content)
        assert str(path) in error.message and error.remedy
        return None
    return {name: (t.dtype, t.shape, b"".join(t.pieces(3))) for name, t in header.tensors.items()}


def agree(content: bytes) -> bool:
    """Whether the file is accepted; if so, the library must see the same tensors in it."""
    found = ours(content)
    if found is not None:
        assert found == oracle(content)
    return found is not None


extents = st.lists(st.integers(0, 4), max_size=4)
names = st.text(max_size=6)


@st.composite
def files(draw: st.DrawFn) -> tuple[bytes, bytes]:
    """Header and data of a file that is right but for the odd detail."""
    entries: dict[str, Any] = {}
    at = 0
    for name in draw(st.lists(names, max_size=4, unique=True)):
        dtype, shape = draw(st.sampled_from([*BITS, "F12"])), draw(extents)
        nbytes = int(np.prod(shape, dtype=int)) * BITS.get(dtype, 8) // 8
        begin = at + draw(st.sampled_from([0, 0, 0, 0, 0, 0, 0, 1, -1]))
        entries[name] = {"dtype": dtype, "shape": shape, "data_offsets": [begin, at + nbytes]}
        at += nbytes
    if draw(st.booleans()):
        entries["__metadata__"] = draw(st.dictionaries(names, names, max_size=2))
    spaced = draw(st.sampled_from([(",", ":"), (" , ", " :\n")]))
    header = json.dumps(entries, separators=spaced, ensure_ascii=draw(st.booleans()))
    padding = b" " * draw(st.integers(0, 9))
    return header.encode("utf-8", "replace") + padding, bytes(i % 2 for i in range(max(at, 0)))


@given(files())
@settings(max_examples=200, deadline=None)
def test_what_is_accepted_the_library_accepts_alike(file: tuple[bytes, bytes]) -> None:
    agree(build(*file))


@pytest.mark.slow
@given(files(), st.data())
@settings(max_examples=300, deadline=None)
def test_a_changed_byte_is_refused_or_means_the_same(
    file: tuple[bytes, bytes], data: st.DataObject
) -> None:
    header, tail = file
    at = data.draw(st.integers(0, len(header) - 1))
    count = data.draw(st.integers(0, 2))
    new = data.draw(
        st.one_of(
            st.binary(max_size=3),
            st.sampled_from([b'"', b"{", b"}", b"[", b"]", b",", b":", b"\\", b"-0", b"1e3"]),
            st.sampled_from([b"NaN", b"null", b"true", b"\\ud800", b"18446744073709551616"]),
        )
    )
    agree(build(header[:at] + new + header[at + count :], tail))


@given(st.binary(max_size=200))
@settings(max_examples=150, deadline=None)
def test_noise_gives_a_header_or_a_named_error(noise: bytes) -> None:
    agree(noise)
    agree(build(noise))
    agree(build(b"{" + noise + b"}"))


def test_the_generator_makes_files_that_are_accepted() -> None:
    accepted = []

    @given(files())
    @settings(max_examples=100, deadline=None, database=None)
    def count(file: tuple[bytes, bytes]) -> None:
        accepted.append(agree(build(*file)))

    count()
    assert 10 < sum(accepted) < len(accepted)
