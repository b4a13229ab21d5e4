"""Hostile files of every kind: a named error or a reading within a second, and nothing is run."""

from __future__ import annotations

import io
import os
import pickle
import pickletools
import struct
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from patience import ends

from adapterhub import formats
from adapterhub.adapter import Reading
from adapterhub.errors import AdapterHubError, UnknownFormat
from adapterhub.formats import contents, gguf_header, pickle_names, zips
from adapterhub.registry import inspection
from adapterhub.tensorfile import ArrayTensor, write_file


def problem(path: Path, data: bytes, name: str = "x.bin") -> str:
    """What is said of a file with this content; that it is refused is checked, too."""
    (path / name).write_bytes(data)
    with ends():
        content = contents.look(path / name)
        with pytest.raises(AdapterHubError):
            inspection.require(formats.read(path / name, allow_pickle=False))
    assert content.problem is not None, content
    assert content.problem.message.isprintable() and content.problem.remedy
    return content.problem.message


# --- pickles ----------------------------------------------------------------------------------


class Payload:
    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.marker),)


def archive(pkl: bytes, *, method: int = zipfile.ZIP_STORED) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", method) as file:
        file.writestr("archive/data.pkl", pkl)
    return stream.getvalue()


@pytest.mark.parametrize("wrap", [archive, bytes], ids=["zip", "plain"])
def test_a_payload_does_not_run(tmp_path: Path, wrap: Callable[[bytes], bytes]) -> None:
    marker = tmp_path / "ran"
    (tmp_path / "x.bin").write_bytes(wrap(pickle.dumps({"a.multi_lora_b": Payload(marker)})))
    with pytest.raises(AdapterHubError):
        inspection.require(formats.read(tmp_path / "x.bin"))
    assert not marker.exists()
    assert contents.look(tmp_path / "x.bin").others == ("a.multi_lora_b",)


@pytest.mark.slow
def test_a_pickle_of_a_million_strings(tmp_path: Path) -> None:
    content = {f"name.{i}": i for i in range(1_000_000)}
    (tmp_path / "x.bin").write_bytes(pickle.dumps(content, protocol=4))
    with ends():
        found = contents.look(tmp_path / "x.bin")
    assert found.problem is None and found.shapes == {}
    assert 0 < len(found.others) <= pickle_names.MAX_NAMES + 2000  # a pickle sets 1000 at once


def opcodes(*parts: bytes) -> bytes:
    return b"\x80\x04" + b"".join(parts) + b"."


DEEP = b"(" * 500_000
LAUGHS = b"]" + b"q\x00" + b"".join(b"h\x00h\x00\x86q\x00" for _ in range(60_000))


@pytest.mark.slow
@pytest.mark.parametrize(
    "data",
    [
        opcodes(DEEP),
        opcodes(LAUGHS),
        opcodes(b"}" * 500_000),
        opcodes(b"N" + b"2" * 500_000),  # DUP
        opcodes(b"}(", *(b"\x8c\x01a" + b"K\x01" for _ in range(200_000)), b"u"),
        opcodes(b"}", *(b"\x8c\x01a" + b"K\x01s" for _ in range(100_000))),
        b"\x80\x02" + b"(" * 4_100_000,
    ],
    ids=["marks", "doubling", "dicts", "dup", "same-key", "one-by-one", "longer-than-read"],
)
def test_pickles_that_would_cost_much(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "x.bin").write_bytes(data)
    with ends():
        contents.look(tmp_path / "x.bin")
        with pytest.raises(AdapterHubError):
            inspection.require(formats.read(tmp_path / "x.bin"))


@pytest.mark.parametrize(
    "data",
    [
        b"\x80\x04\x95\xff\xff\xff\xff\xff\xff\xff\x7f",
        b"\x80\x04\x8d\xff\xff\xff\xff\xff\xff\xff\x7f",  # a text of 2^63 bytes
        b"\x80\x02\x8b\xff\xff\xff\x7f",  # a number of 2 GiB
        b"\x80\x020.",  # POP of nothing
        b"\x80\x02t.",  # a tuple up to a mark that is not there
        b"\x80\x02u.",
        b"\x80\x02\xff",
        b"\x80\x02I" + b"9" * 10_000 + b"\n.",
        b"\x80\x02",
    ],
)
def test_broken_pickles(tmp_path: Path, data: bytes) -> None:
    assert "is no pickle" in problem(tmp_path, data)


def test_shapes_are_believed_only_where_they_are_shapes(tmp_path: Path) -> None:
    def call(size: bytes) -> bytes:
        name = b"ctorch._utils\n_rebuild_tensor_v2\n"
        return b"}\x8c\x01a" + name + b"(NK\x00" + size + b"ttRs"

    for size, expected in (
        (b"(K\x02K\x03", (2, 3)),
        (b"(K\x02N", None),
        (b"(\x8a\x08\xff\xff\xff\xff\xff\xff\xff\x7f", None),  # 2^63 - 1
        (b"(J\xff\xff\xff\xff", None),  # -1
        (b"(" + b"K\x01" * 33, None),
    ):
        (tmp_path / "x.bin").write_bytes(b"\x80\x04" + call(size) + b".")
        assert contents.look(tmp_path / "x.bin").shapes == {"a": expected}


def test_names_of_torch_are_those_of_torch(tmp_path: Path) -> None:
    """Against torch itself: both of its formats, parameters, nested dicts, odd names."""
    import torch

    inner = {
        "a.weight": torch.zeros(2, 3),
        "b": torch.nn.Parameter(torch.zeros(4, dtype=torch.bfloat16)),
        "c d\u00e9": torch.zeros(()),
        "view": torch.zeros(6, 6).t()[1:3],
    }
    shapes = {name: tuple(tensor.shape) for name, tensor in inner.items()}
    for zipped in (True, False):
        for content in (inner, {"model": inner, "step": 3}, OrderedDict(inner)):
            torch.save(content, tmp_path / "x.bin", _use_new_zipfile_serialization=zipped)
            assert contents.look(tmp_path / "x.bin").shapes == shapes


# --- archives ---------------------------------------------------------------------------------


def test_zip_bombs_are_not_unpacked(tmp_path: Path) -> None:
    bomb = archive(bytes(50_000_000), method=zipfile.ZIP_DEFLATED)
    assert len(bomb) < 100_000
    assert "is compressed, and is not unpacked" in problem(tmp_path, bomb)
    np.savez_compressed(tmp_path / "adapters.npz", a=np.zeros((4000, 4000)))
    data = (tmp_path / "adapters.npz").read_bytes()
    assert "is compressed" in problem(tmp_path, data, "adapters.npz")


def end(count: int, length: int, start: int) -> bytes:
    return b"PK\x05\x06" + struct.pack("<HHHHIIH", 0, 0, count, count, length, start, 0)


def end64(count: int, length: int, start: int) -> bytes:
    record = b"PK\x06\x06" + struct.pack(
        "<QHHIIQQQQ", 44, 45, 45, 0, 0, count, count, length, start
    )
    locator = b"PK\x06\x07" + struct.pack("<IQI", 0, 4, 1)
    return record + locator + end(0xFFFF, 0xFFFFFFFF, 0xFFFFFFFF)


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"PK\x03\x04", "truncated"),
        (b"PK\x03\x04" + end(0, 0, 0), "without data.pkl"),
        (b"PK\x03\x04" + end(60_000, 1000, 0), "claims 60000 members"),
        (b"PK\x03\x04" + end(3, 0x7FFFFFFF, 0), "claims 3 members in a directory of"),
        (b"PK\x03\x04" + end(3, 100, 0), "lies beyond its end"),
        (b"PK\x03\x04" + end(3, 4, 0), "claims 3 members and lists 0"),
        (b"PK\x03\x04" + end(0xFFFF, 0xFFFFFFFF, 0xFFFFFFFF), "lacks the record"),
        (b"PK\x03\x04" + end64(2**60, 2**60, 0), f"claims {2**60} members"),
        (b"PK\x03\x04" + end64(1, 100, 2**63), "lies beyond its end"),
    ],
)
def test_archives_that_lie(tmp_path: Path, data: bytes, said: str) -> None:
    assert said in problem(tmp_path, data)


def test_an_archive_of_very_many_members(tmp_path: Path) -> None:
    entry = b"PK\x01\x02" + bytes(42)
    data = b"PK\x03\x04" + entry * 65_000 + end(65_000, 46 * 65_000, 4)
    assert "claims 65000 members" in problem(tmp_path, data)


@pytest.mark.parametrize("offset", [2**62, 2**63 - 1, 2**63, 2**64 - 1])
@pytest.mark.parametrize("name", ["a.npy", "a/data.pkl"])
def test_a_member_beyond_all_files(tmp_path: Path, name: str, offset: int) -> None:
    wide = struct.pack("<HHQQQ", 1, 24, 10, 10, offset)
    entry = b"PK\x01\x02" + bytes(16) + b"\xff" * 8
    entry += struct.pack("<HHHHHII", len(name), len(wide), 0, 0, 0, 0, 0xFFFFFFFF)
    entry += name.encode() + wide
    data = b"PK\x03\x04" + entry + end(1, len(entry), 4)
    suffix = "npz" if name.endswith("npy") else "bin"
    assert "is not where the directory says" in problem(tmp_path, data, f"x.{suffix}")


def test_sizes_of_more_than_32_bits(tmp_path: Path) -> None:
    """Of an archive that zipfile wrote with such fields; and one cut anywhere."""
    with (
        zipfile.ZipFile(tmp_path / "x.zip", "w") as file,
        file.open("a", "w", force_zip64=True) as a,
    ):
        a.write(b"content")
    data = (tmp_path / "x.zip").read_bytes()
    with (tmp_path / "x.zip").open("rb") as stream:
        (member,) = zips.members(stream.fileno())
        assert (member.name, member.size) == ("a", 7)
        assert zips.stored(stream.fileno(), member, 4) == b"cont"
    for cut in range(len(data)):
        (tmp_path / "y.bin").write_bytes(data[:cut])
        assert contents.look(tmp_path / "y.bin").shapes == {}


# --- arrays -----------------------------------------------------------------------------------


def npy(header: str, data: bytes = b"", version: bytes = b"\x01\x00") -> bytes:
    text = header.encode() + b"\n"
    return b"\x93NUMPY" + version + struct.pack("<H", len(text)) + text + data


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (
            npy("{'descr': '|O', 'fortran_order': False, 'shape': (2, 2)}"),
            "a pickle, which is never",
        ),
        (npy("{'descr': '<f4', 'fortran_order': False, 'shape': (2, 2)}"), "and its header are"),
        (npy("{'descr': '<f4', 'fortran_order': False, 'shape': (9**99,)}"), "no sound"),
        (
            npy(f"{{'descr': '<f4', 'fortran_order': False, 'shape': ({10**18}, 0)}}"),
            "claims the shape",
        ),
        (npy("{'descr': '<f4', 'fortran_order': False, 'shape': (-1, 4)}"), "no sound"),
        (npy("(" * 5000), "no sound .npy header"),
        (npy("[" * 9000), "no sound .npy header"),
        (npy("__import__('os')"), "no sound .npy header"),
        (npy("{'descr': '<U2', 'fortran_order': False, 'shape': ()}", bytes(8)), "safetensors"),
        (npy("{'descr': '<f9', 'fortran_order': False, 'shape': ()}"), "no type of numpy"),
        (npy("{'descr': '<f4', 'descr': '<f4', 'shape': ()}"), "no sound"),
        (npy("{'descr': '<f4', 'fortran_order': True, 'shape': (" + "1" * 5000), "no sound"),
        (npy("{'descr': '<f4', 'fortran_order': True, 'shape': (" + " " * 9000), "no sound"),
        (npy("{}", version=b"\x09\x00"), "version"),
        (b"\x93NUMPY\x01\x00\xff\xff{", "no sound .npy header"),
        (b"\x93NUMPY", "no .npy header"),
    ],
)
def test_arrays_that_lie(tmp_path: Path, data: bytes, said: str) -> None:
    assert said in problem(tmp_path, data, "x.npy")


def test_an_npz_with_objects_or_other_files(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", a=np.array([{}], dtype=object))
    assert "never read" in problem(tmp_path, (tmp_path / "a.npz").read_bytes(), "a.npz")
    with zipfile.ZipFile(tmp_path / "b.npz", "w") as file:
        file.writestr("x.lora_a.npy", b"no array")
    assert "no .npy header" in problem(tmp_path, (tmp_path / "b.npz").read_bytes(), "b.npz")


# --- GGUF -------------------------------------------------------------------------------------


def gguf(tensors: int, pairs: int, body: bytes = b"", version: int = 3) -> bytes:
    return b"GGUF" + struct.pack("<IQQ", version, tensors, pairs) + body


def text(value: bytes) -> bytes:
    return struct.pack("<Q", len(value)) + value


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"GGUF", "is cut"),
        (gguf(0, 0, version=1), "version 1"),
        (gguf(0, 0, version=0x03000000), "little-endian"),
        (gguf(2**63, 0), "claims 9223372036854775808 tensors"),
        (gguf(0, 2**40), "1099511627776 pairs"),
        (gguf(0, 1, struct.pack("<Q", 2**62)), "claims a text of"),
        (gguf(0, 1, text(b"a") + struct.pack("<IQ", 8, 2**62)), "claims a text of"),
        (gguf(0, 1, text(b"a") + struct.pack("<I", 99)), "unknown type 99"),
        (gguf(0, 1, text(b"a") + struct.pack("<IIQ", 9, 4, 2**62)), "is cut"),
        (gguf(0, 1, text(b"a") + struct.pack("<IIQ", 9, 8, 2**62)), "an array of"),
        (gguf(0, 1, text(b"a") + struct.pack("<IIQ", 9, 9, 5)), "an array of 5 items of type 9"),
        (gguf(0, 2, 2 * (text(b"a") + struct.pack("<IB", 0, 1))), "the key 'a' twice"),
        (gguf(1, 0, text(b"t") + struct.pack("<I", 2**31)), "dimensions"),
        (gguf(1, 0, text(b"t") + struct.pack("<IQQ", 1, 2**60, 0)), "claims the extents"),
        (gguf(2, 0, 2 * (text(b"t") + struct.pack("<IIQ", 0, 0, 0))), "the tensor 't' twice"),
        (gguf(0, 1, text(b"\xff\xfe") + struct.pack("<IB", 0, 1)), "not UTF-8"),
    ],
)
def test_gguf_that_lies(tmp_path: Path, data: bytes, said: str) -> None:
    assert said in problem(tmp_path, data, "x.gguf")


def test_gguf_of_very_many_texts(tmp_path: Path) -> None:
    count = gguf_header.MAX_ITEMS
    data = gguf(0, 1, text(b"a") + struct.pack("<IIQ", 9, 8, count) + text(b"") * count)
    (tmp_path / "x.gguf").write_bytes(data)
    with ends():
        assert contents.look(tmp_path / "x.gguf").problem is None


def test_gguf_cut_anywhere(tmp_path: Path) -> None:
    body = text(b"general.type") + struct.pack("<I", 8) + text(b"adapter")
    body += text(b"t.lora_a") + struct.pack("<IQQIQ", 2, 6, 2, 0, 0)
    data = gguf(1, 1, body)
    for cut in range(4, len(data)):
        (tmp_path / "x.gguf").write_bytes(data[:cut])
        found = contents.look(tmp_path / "x.gguf").problem
        assert found is not None and "is cut within its header" in found.message


# --- directories and configs ------------------------------------------------------------------


def test_a_directory_of_pipes_and_devices(tmp_path: Path) -> None:
    for name in ("adapter_config.json", "adapter_model.safetensors", "adapters.npz", "x.bin"):
        os.mkfifo(tmp_path / name)
    (tmp_path / "lora.safetensors").symlink_to("/dev/zero")
    (tmp_path / "loop.gguf").symlink_to(tmp_path / "loop.gguf")
    with ends(), pytest.raises(UnknownFormat, match=r"seen: adapter_model\.safetensors, "):
        formats.read(tmp_path)
    for name in ("x.bin", "lora.safetensors", "adapter_config.json"):
        with ends(), pytest.raises(AdapterHubError):
            formats.read(tmp_path / name)


def test_a_directory_of_very_many_files(tmp_path: Path) -> None:
    one = tmp_path / "0.safetensors"
    write_file(one, {"encoder.weight": ArrayTensor(np.ones((2, 2), np.float32))})
    for number in range(1, 3000):
        (tmp_path / f"{number}.safetensors").hardlink_to(one)
    with ends():
        reading = formats.read(tmp_path)
    assert reading.format == "unknown"
    assert "and 2992 more" in reading.problems[0].message


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"", "not valid JSON"),
        (b"[" * 20_000, "nested too deeply"),
        (b'{"peft_type": "LORA", "peft_type": "IA3"}', "occurs twice"),
        (b'{"r": 1e999}', "too large"),
        (b'{"r": NaN}', "NaN"),
        (b"[1]", "expected an object"),
        (b'{"x": "' + b"a" * 10_000_000 + b'"}', "too large for a config"),
    ],
    ids=["empty", "deep", "twice", "infinite", "nan", "list", "10 MB"],
)
@pytest.mark.parametrize("name", ["adapter_config.json", "any.json"])
def test_hostile_configs(tmp_path: Path, data: bytes, said: str, name: str) -> None:
    (tmp_path / name).write_bytes(data)
    for path in (tmp_path / name, tmp_path):
        with ends():
            reading = _read(path)
        if reading is not None:
            assert said in "\n".join(p.message for p in reading.problems)


def _read(path: Path) -> Reading | None:
    try:
        return formats.read(path)
    except UnknownFormat:
        assert path.is_dir()  # a directory of anything.json is no adapter
        return None


JSON: tuple[Any, ...] = (
    None,
    True,
    -1,
    1e300,
    "",
    "x" * 5000,
    "\x1b[31m",
    [],
    [[1]],
    {},
    {"a": {}},
)


def test_any_json_in_any_field_of_the_configs_that_are_looked_at(tmp_path: Path) -> None:
    import json

    fields = ("config", "name", "version", "model_type", "hidden_size", "model_name", "model")
    fields += ("peft_type", "fine_tune_type", "lora_parameters", "num_layers", "enable_lora")
    inner = ("architecture", "configs", "composition_mode", "alpha", "r", "phm_layer", "dora")
    base = {"config": {}, "name": "n", "model_type": "bert", "hidden_size": 8}
    documents = [{**base, field: value} for field in fields for value in JSON]
    documents += [
        {**base, "config": {"architecture": a, field: value}}
        for field in inner
        for value in JSON
        for a in ("lora", "union")
    ]
    documents += [{"lora_parameters": {"rank": v, "scale": v}, "num_layers": 1} for v in JSON]
    for document in documents:
        (tmp_path / "x.json").write_text(json.dumps(document))
        reading = formats.read(tmp_path / "x.json")
        assert reading.fatal
        shown = inspection.inspect(reading, source="x")
        assert all(p.message.isprintable() and len(p.message) < 2000 for p in shown.problems)
        json.dumps(shown.to_dict(), allow_nan=False)


def test_sight_is_lazy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A PEFT adapter is told by its config alone: its weights are not opened for it."""
    (tmp_path / "adapter_config.json").write_text('{"peft_type": "LORA"}')
    (tmp_path / "adapter_model.safetensors").write_bytes(b"")
    monkeypatch.setattr("adapterhub.formats.sight.look", lambda path: pytest.fail("opened"))
    found = formats.detect(tmp_path)
    assert found is not None and found.name == "peft"


def test_every_opcode_is_played() -> None:
    """None of them raises anything but ValueError, whatever is on the stack."""
    for opcode in pickletools.opcodes:
        for filler in (b"", b"(", b"N", b"(NN", b"}NN", b"((", b"\x8c\x01a\x8c\x01b"):
            data = b"\x80\x04" + filler + opcode.code.encode("latin-1") + b"\x01" * 8 + b"\n\n."
            try:
                pickle_names.play(io.BytesIO(data), pickle_names.Machine())
            except ValueError as error:
                assert "is no pickle" in str(error)
