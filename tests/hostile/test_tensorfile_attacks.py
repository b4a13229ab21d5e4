"""Tensor files made to mislead or to hurt: each is refused with its reason and its place."""

from __future__ import annotations

import json
import os
import pickle
import subprocess
import sys
import tracemalloc
import zipfile
from pathlib import Path
from typing import Any

import pytest

from adapterhub.errors import InvalidTensorFile
from adapterhub.tensorfile import FileTensor, read_header


def build(header: bytes | dict[str, Any], data: bytes = b"") -> bytes:
    raw = header if isinstance(header, bytes) else json.dumps(header).encode()
    return len(raw).to_bytes(8, "little") + raw + data


def entry(dtype: object = "U8", shape: object = (4,), offsets: object = (0, 4)) -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets}


def refused(tmp_path: Path, content: bytes) -> InvalidTensorFile:
    path = tmp_path / "x.safetensors"
    path.write_bytes(content)
    with pytest.raises(InvalidTensorFile) as caught:
        read_header(path)
    assert caught.value.message.startswith(f"{path}: ")
    assert caught.value.remedy
    return caught.value


LONG = b'{"a":{"dtype":"U8","shape":[' + b"1," * 3000 + b'1],"data_offsets":[0,1]}}'

# (what is wrong, header, data, reason, offset in the file or the text that stands there)
HEADERS: list[tuple[str, bytes | dict[str, Any], bytes, str, int | bytes]] = [
    ("empty header", b"", b"", "the header does not begin with '{'", 8),
    ("space first", b" {}", b"", "the header does not begin with '{'", 8),
    ("an array", b"[]", b"", "the header does not begin with '{'", 8),
    ("byte order mark", b"\xef\xbb\xbf{}", b"", "the header does not begin with '{'", 8),
    ("not UTF-8", b'{"a\xff":1}', b"", "the header is not UTF-8", 11),
    ("overlong UTF-8", b'{"\xc0\xaf":1}', b"", "the header is not UTF-8", 10),
    ("cut JSON", b'{"a":{"dtype":"U8"', b"", "does not end within 4096 characters", 9),
    ("never closed", b"{", b"", "expected a name in double quotes", 9),
    ("no comma", b'{"__metadata__":{} "a":{}}', b"", "expected ',' or '}'", 27),
    ("comma at the end", b'{"__metadata__":{},}', b"", "expected a name in double quotes", 27),
    ("no colon", b'{"__metadata__" {}}', b"", "expected ':'", 24),
    ("after the end", b"{}{}", b"", "the header goes on after its last '}'", 10),
    ("NUL padding", b"{}\0\0", b"", "the header goes on after its last '}'", 10),
    ("control character", b'{"a\n":{}}', b"", "Invalid control character", 11),
    ("bad escape", b'{"\\x":{}}', b"", "Invalid \\escape", 10),
    ("name twice", b'{"a":%b,"a":%b}', b"", 'the key "a" stands twice', b'"a":X'),
    ("name twice, once escaped", b'{"a":%b,"\\u0061":%b}', b"", 'the key "a" stands', b'"\\u'),
    ("metadata twice", b'{"__metadata__":{},"__metadata__":{}}', b"", "stands twice", 27),
    ("key twice", b'{"__metadata__":{"k":"1","k":"2"}}', b"", "the key 'k' stands twice", 9),
    ("dtype twice", b'{"a":{"dtype":"U8","dtype":"I8"}}', b"", "'dtype' stands twice", 9),
    ("metadata number", {"__metadata__": {"k": 1}}, b"", '"k" is a int, expected a string', 9),
    ("metadata list", {"__metadata__": []}, b"", "not a flat map of strings to strings", 9),
    ("metadata nested", {"__metadata__": {"k": {}}}, b"", "not a flat map of strings", 9),
    ("metadata surrogate", b'{"__metadata__":{"k":"\\ud800"}}', b"", "lone surrogate", 9),
    ("NaN", b'{"__metadata__":{"k":NaN}}', b"", "NaN is not a whole number", 9),
    ("Infinity", b'{"a":{"dtype":-Infinity}}', b"", "-Infinity is not a whole number", 9),
    ("tensor is a list", {"a": [1]}, b"", "its entry is not a JSON object", 9),
    ("tensor is null", {"a": None}, b"", "its entry is not a JSON object", 9),
    ("no fields", {"a": {}}, b"", "expected dtype, shape and data_offsets", 9),
    ("a field more", {"a": entry() | {"x": 1}}, b"1234", 'has "dtype", "shape", "data_o', 9),
    ("unknown dtype", {"a": entry("F12")}, b"1234", "dtype 'F12' is none of BF16, BOOL", 9),
    ("dtype in lower case", {"a": entry("f32")}, b"1234", "dtype 'f32' is none of", 9),
    ("dtype number", {"a": entry(3)}, b"1234", "its dtype is not a string", 9),
    ("shape number", {"a": entry(shape=4)}, b"1234", "or its shape not a list", 9),
    ("negative extent", {"a": entry(shape=[-1, -4])}, b"1234", "-1 is negative", 9),
    ("minus zero", b'{"a":{"shape":[-0]}}', b"", "-0 is negative", 9),
    ("boolean extent", {"a": entry(shape=[True, 4])}, b"1234", "shape holds True", 9),
    ("float extent", {"a": entry(shape=[4.0])}, b"1234", "4.0 is not a whole number", 9),
    ("text extent", {"a": entry(shape=["4"])}, b"1234", "shape holds '4'", 9),
    ("rank 33", {"a": entry(shape=[1] * 33)}, b"1", "33 dimensions, at most 32 are", 9),
    ("extent of 4000 digits", {"a": entry(shape=[10**4000])}, b"", "is beyond 2^53", 9),
    ("product overflows", {"a": entry(shape=[2**31] * 3)}, b"", "exceeds 2^53 bytes", 9),
    ("hidden by a zero", {"a": entry(shape=[0, 2**52, 8])}, b"", "exceeds 2^53 bytes", 9),
    ("half a byte", {"a": entry("F4", [3], [0, 2])}, b"12", "is 12 bits, no whole bytes", 9),
    ("three offsets", {"a": entry(offsets=[0, 2, 4])}, b"1234", "not two whole numbers", 9),
    ("offsets false", {"a": entry(offsets=[False, 4])}, b"1234", "not two whole numbers", 9),
    ("offsets beyond", {"a": entry(offsets=[0, 2**64])}, b"1234", "is beyond 2^53", 9),
    ("offsets backwards", {"a": entry(offsets=[4, 0])}, b"1234", "end before they begin", 9),
    ("too few bytes", {"a": entry("F32")}, b"1234", "hold 4 bytes, but shape [4] of F32 is 16", 9),
    ("no name", {"": entry()}, b"1234", 'tensor "": its name is empty', 9),
    ("NUL in a name", {"a\0b": entry()}, b"1234", "holds the character U+0000", 9),
    ("escape sequence", {"\x1b[2J": entry()}, b"1234", "holds the character U+001B", 9),
    ("text direction", {"a\u202eb": entry()}, b"1234", "holds the character U+202E", 9),
    ("surrogate", {"\ud800": entry()}, b"1234", "holds the character U+D800", 9),
    ("long name", {"n" * 1025: entry()}, b"1234", "has 1025 bytes, at most 1024", 9),
    ("long entry", LONG, b"1", "does not end within 4096 characters", 9),
    ("second after ü", {"ü": entry(), "b": entry("?")}, b"1234", "dtype '?'", b'"b"'),
]


@pytest.mark.parametrize(
    ("header", "data", "reason", "offset"),
    [case[1:] for case in HEADERS],
    ids=[case[0] for case in HEADERS],
)
def test_header(
    tmp_path: Path, header: bytes | dict[str, Any], data: bytes, reason: str, offset: int | bytes
) -> None:
    if isinstance(header, bytes) and b"%b" in header:
        header = header.replace(b"%b", json.dumps(entry()).encode(), 1).replace(b"%b", b"X")
    content = build(header, data)
    error = refused(tmp_path, content)
    assert reason in error.message
    assert error.offset == (offset if isinstance(offset, int) else content.rindex(offset))
    assert f"(at byte {error.offset})" in error.message


def cover(*offsets: tuple[int, int], size: int) -> tuple[bytes, int]:
    """A file of U8 tensors a, b, … at these offsets, and where its data begin."""
    names = "abcdef"
    header = {n: entry("U8", [e - b], [b, e]) for n, (b, e) in zip(names, offsets, strict=False)}
    content = build(header, bytes(size))
    return content, len(content) - size


@pytest.mark.parametrize(
    ("offsets", "size", "reason", "at"),
    [
        ([(0, 4), (2, 6)], 6, 'tensor "b" overlaps tensor "a" by 2 bytes', 2),
        ([(0, 4), (0, 4)], 4, 'tensor "b" overlaps tensor "a" by 4 bytes', 0),
        ([(0, 9), (2, 4)], 9, 'tensor "b" overlaps tensor "a" by 2 bytes', 2),
        ([(0, 4), (6, 8)], 8, '2 bytes before tensor "b" belong to no tensor', 4),
        ([(1, 4)], 4, '1 bytes before tensor "a" belong to no tensor', 0),
        ([(4, 4)], 0, '4 bytes before tensor "a" belong to no tensor', 0),
        ([(0, 4)], 6, "2 bytes follow the last tensor", 4),
        ([], 1, "1 bytes follow the last tensor", 0),
        ([(0, 4), (4, 9)], 6, "is cut: 3 of", 6),
    ],
)
def test_cover(
    tmp_path: Path, offsets: list[tuple[int, int]], size: int, reason: str, at: int
) -> None:
    content, start = cover(*offsets, size=size)
    error = refused(tmp_path, content)
    assert reason in error.message
    assert error.offset == start + at


def test_cut_file_says_how_much_is_missing(tmp_path: Path) -> None:
    content = build({"a": entry("U8", [100], [0, 100])}, bytes(100))
    error = refused(tmp_path, content[:-30])
    assert f"is cut: 30 of {len(content)} bytes are missing" in error.message
    assert error.remedy == "download the file again"
    error = refused(tmp_path, content[:20])
    assert f"is cut within its header: {len(content) - 120} bytes of it" in error.message


@pytest.mark.parametrize("length", [100_000_001, 2**63, 2**64 - 1])
def test_length_of_the_header_is_bounded(tmp_path: Path, length: int) -> None:
    error = refused(tmp_path, length.to_bytes(8, "little") + b"{}")
    assert f"claims a header of {length} bytes, at most 100000000" in error.message
    assert error.offset == 0


@pytest.mark.parametrize("content", [b"", b"\x02", b"\x02\0\0\0\0\0\0"])
def test_shorter_than_its_length_field(tmp_path: Path, content: bytes) -> None:
    assert f"has {len(content)} bytes, a safe" in refused(tmp_path, content).message


@pytest.mark.parametrize("opening", ['{"a":', '{"a":{"shape":', "["])
@pytest.mark.parametrize("name", ["a", "__metadata__"])
def test_ten_thousand_levels(tmp_path: Path, opening: str, name: str) -> None:
    """Named, neither RecursionError nor a crash, whatever the recursion limit is."""
    header = (f'{{"{name}":' + opening * 10_000).encode()
    closed = header + b"}]" * 10_000
    script = (
        "import sys; sys.setrecursionlimit(10**6)\n"
        "from adapterhub.tensorfile import read_header\n"
        "from adapterhub.errors import InvalidTensorFile\n"
        "try: read_header(sys.argv[1])\n"
        "except InvalidTensorFile: print('named')"
    )
    for content in (header, closed):
        error = refused(tmp_path, build(content))
        assert error.offset == 9
    command = [sys.executable, "-c", script, str(tmp_path / "x.safetensors")]
    assert subprocess.run(command, capture_output=True, check=True).stdout == b"named\n"


def test_a_small_header_cannot_make_large_objects(tmp_path: Path) -> None:
    """Four megabytes of empty lists would become 100 MB of Python objects."""
    header = b'{"a":{"shape":[' + b"[]," * 1_400_000 + b"[]]}}"
    (tmp_path / "x.safetensors").write_bytes(build(header))
    tracemalloc.start()
    refused(tmp_path, build(header))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 6 * len(header)


def test_message_does_not_carry_the_attack(tmp_path: Path) -> None:
    error = refused(tmp_path, build({"\x1b]0;owned\x07" + "x" * 5000: entry()}, b"1234"))
    assert "\x1b" not in str(error) and len(error.message) < 400


# --- other files in its place -----------------------------------------------------------------

LFS = (
    b"version https://git-lfs.github.com/spec/v1\n"
    b"oid sha256:4d7a214614ab2935c943f9e0ff69d22eadbb8f32b1258daaa5e2ca24d17e2393\nsize 12345\n"
)


@pytest.mark.parametrize(
    ("content", "what", "remedy"),
    [
        (LFS, "a Git-LFS pointer", "git lfs pull"),
        (b"/annex/objects/SHA256E-s1--00", "a git-annex pointer", "git annex get"),
        (b"<!DOCTYPE html><html></html>", "an HTML page", "a web page was saved"),
        (b"\n  <html>\n</html>", "an HTML page", "a web page was saved"),
        (b"<?xml version='1.0'?><Error/>", "an XML document", "download the file again"),
        (b"Entry not found at this place", "an error message", "check the name"),
        (pickle.dumps({"a": 1}, protocol=2), "a Python pickle", "saving as safetensors"),
        (pickle.dumps({"a": 1}, protocol=5), "a Python pickle", "saving as safetensors"),
        (b"GGUF\x03\0\0\0\0\0\0\0", "a GGUF file", "convert it"),
        (b"\x89HDF\r\n\x1a\n", "an HDF5 file", "convert it"),
        (b"\x93NUMPY\x01\0v\0", "a numpy array", "convert it"),
        (b"\x1f\x8b\x08\0\0\0\0\0\0\x03", "a gzip archive", "unpack it"),
        (b'{"weight_map":{}}', "a JSON document", "not the config or the index"),
    ],
)
def test_stranger(tmp_path: Path, content: bytes, what: str, remedy: str) -> None:
    error = refused(tmp_path, content)
    assert f"is {what}, not a safetensors file" in error.message
    assert remedy in error.remedy and error.offset == 0


def test_zip_archive(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as archive:
        archive.writestr("archive/data.pkl", b"0" * 100)
    error = refused(tmp_path, (tmp_path / "x.zip").read_bytes())
    assert "is a zip archive (torch.save writes those)" in error.message


# --- the file itself --------------------------------------------------------------------------


def test_pipe_is_refused_without_waiting(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "x.safetensors")
    with pytest.raises(InvalidTensorFile, match="is not a regular file"):
        read_header(tmp_path / "x.safetensors")


def test_directory_and_device() -> None:
    for path in ("/", "/dev/zero"):
        with pytest.raises(InvalidTensorFile, match="is not a regular file"):
            read_header(path)


def test_loop_of_links(tmp_path: Path) -> None:
    (tmp_path / "x").symlink_to("x")
    with pytest.raises(InvalidTensorFile, match="cannot be opened: Too many levels"):
        read_header(tmp_path / "x")


def test_file_cut_while_in_use(tmp_path: Path) -> None:
    """`pread` comes back short; a mapping would have killed the process."""
    path = tmp_path / "x.safetensors"
    path.write_bytes(build({"a": entry("U8", [100_000], [0, 100_000])}, bytes(100_000)))
    tensor: FileTensor = read_header(path).tensors["a"]
    os.truncate(path, tensor.offset + 60_000)
    with pytest.raises(InvalidTensorFile, match="ends 40000 bytes early") as caught:
        tensor.read()
    assert caught.value.offset == tensor.offset + 60_000
    with pytest.raises(InvalidTensorFile, match="it was cut while in use"):
        list(tensor.pieces())


def test_bool_that_is_neither(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    path.write_bytes(build({"a": entry("BOOL")}, b"\x00\x01\x02\x01"))
    tensor = read_header(path).tensors["a"]
    with pytest.raises(InvalidTensorFile, match="a BOOL has the value 2") as caught:
        tensor.read()
    assert caught.value.offset == tensor.offset + 2
