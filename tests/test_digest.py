"""The roots, against golden vectors and a second implementation written from the docstring."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import rfc8785
from hypothesis import given, settings
from hypothesis import strategies as st

from adapterhub import digest
from adapterhub.tensorfile import (
    ArrayTensor,
    FileTensor,
    Spec,
    open_checkpoint,
    plan_shards,
    read_header,
    tensor_digests,
    write_file,
)

GOLDEN = json.loads((Path(__file__).parent / "golden" / "roots.json").read_text())
MiB = 1024 * 1024

# --- a second implementation, from the definitions alone --------------------------------------


def sha(*parts: bytes) -> bytes:
    return hashlib.sha256(b"".join(parts)).digest()


def tree(nodes: list[bytes]) -> bytes:
    """The split of RFC 9162: left of the largest power of two; the same as carrying odd nodes."""
    if len(nodes) < 2:
        return nodes[0] if nodes else sha()
    half = 1 << (len(nodes) - 1).bit_length() - 1
    return sha(b"\x01", tree(nodes[:half]), tree(nodes[half:]))


def d_of(data: bytes) -> bytes:
    return tree([sha(data[i : i + 4 * MiB]) for i in range(0, max(len(data), 1), 4 * MiB)])


def root_of(tag: bytes, named: dict[str, bytes]) -> str:
    leaves = [named[name] for name in sorted(named, key=str.encode)]
    return "sha256:" + sha(tag, b"\0", len(leaves).to_bytes(8, "big"), tree(leaves)).hex()


# --- the fixed checkpoint ---------------------------------------------------------------------


def pattern(nbytes: int) -> bytes:
    """0, 1, … 250, 0, 1, …: 251 is prime, so chunks of 4 MiB differ."""
    return (bytes(range(251)) * (nbytes // 251 + 1))[:nbytes]


CHECKPOINT: dict[str, np.ndarray[Any, Any]] = {
    "embed.weight": np.arange(6, dtype=np.float32).reshape(2, 3),
    "layer.0.weight": np.array([[1, -2]], dtype=ml_dtypes.bfloat16),
    "layer.0.bias": np.zeros(0, np.float16),
    "step": np.array(7, np.int64),
    "ключ": np.array([True, False]),
}


def spelled(array: np.ndarray[Any, Any]) -> str:
    return ArrayTensor(array).dtype


def roots(tensors: dict[str, FileTensor]) -> tuple[str, str]:
    found = tensor_digests(tensors)
    weights = digest.weights_root((n, t.dtype, t.shape, found[n]) for n, t in tensors.items())
    return weights, digest.structure_root((n, t.shape) for n, t in tensors.items())


# --- canonical JSON ---------------------------------------------------------------------------

json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**53) + 1, 2**53 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)


@given(json_values)
@settings(max_examples=400, deadline=None)
def test_canonical_is_rfc_8785(value: Any) -> None:
    assert digest.canonical(value) == rfc8785.dumps(value)


@given(st.floats(allow_nan=False, allow_infinity=False))
@settings(max_examples=400, deadline=None)
def test_numbers_as_ecmascript_prints_them(value: float) -> None:
    text = digest.canonical(value)
    assert text == rfc8785.dumps(value)
    assert float(text) == value


@pytest.mark.parametrize("case", GOLDEN["canonical"], ids=lambda case: case["text"][:40])
def test_canonical_golden(case: dict[str, Any]) -> None:
    assert digest.canonical(case["value"]).decode() == case["text"]


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        (math.nan, "nan has no canonical JSON"),
        (math.inf, "inf has no canonical JSON"),
        (2**53 + 1, "beyond 2\\^53"),
        (b"x", "bytes has no canonical JSON"),
        ({1: 2}, "keys that are strings"),
        ({"a": {1}}, "set has no canonical JSON"),
        ("\ud800", "surrogates not allowed"),
    ],
)
def test_no_canonical_json(value: Any, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        digest.canonical(value)


# --- trees and tensors ------------------------------------------------------------------------


def test_merkle_by_hand() -> None:
    a, b, c = sha(b"a"), sha(b"b"), sha(b"c")
    assert digest.merkle([]).hex() == hashlib.sha256().hexdigest()
    assert digest.merkle([a]) == a
    assert digest.merkle([a, b]) == sha(b"\x01", a, b)
    assert digest.merkle([a, b, c]) == sha(b"\x01", sha(b"\x01", a, b), c)


@given(st.integers(0, 70))
def test_merkle_is_the_recursive_tree(count: int) -> None:
    nodes = [sha(bytes([i])) for i in range(count)]
    assert digest.merkle(nodes) == tree(nodes)


@pytest.mark.parametrize("nbytes", [0, 1, 4 * MiB, 4 * MiB + 1, 9 * MiB])
def test_tensor_digests_golden(nbytes: int, tmp_path: Path) -> None:
    data = pattern(nbytes)
    golden = bytes.fromhex(GOLDEN["D"][str(nbytes)])
    assert golden == d_of(data) == digest.of_tensor(data)
    hasher = digest.TensorHasher()
    for start in range(0, nbytes, 3_000_000):
        hasher.update(data[start : start + 3_000_000])
    assert hasher.digest() == golden
    write_file(tmp_path / "x", {"a": ArrayTensor(np.frombuffer(data, np.uint8))})
    assert tensor_digests(read_header(tmp_path / "x").tensors) == {"a": golden}


def test_the_golden_digests_that_need_no_tree() -> None:
    """Checked with `printf '' | sha256sum` and `printf '\\0' | sha256sum`."""
    assert GOLDEN["D"]["0"].startswith("e3b0c44298fc1c14")
    assert GOLDEN["D"]["1"].startswith("6e340b9cffb37a98")


# --- roots ------------------------------------------------------------------------------------


def test_roots_by_the_second_implementation() -> None:
    leaves, structure = {}, {}
    for name, array in CHECKPOINT.items():
        shape = "[" + ",".join(str(n) for n in array.shape) + "]"
        told = f'["{name}","{spelled(array)}",{shape}]'.encode()
        leaves[name] = sha(b"\0", told, d_of(array.tobytes()))
        structure[name] = sha(b"\0", f'["{name}",{shape}]'.encode())
    assert root_of(b"adapterhub/weights_root/v1", leaves) == GOLDEN["weights_root"]
    assert root_of(b"adapterhub/structure_root/v1", structure) == GOLDEN["structure_root"]


@pytest.mark.parametrize("limit", [None, 10, 1])
@pytest.mark.parametrize("arrange", [list, sorted, lambda names: list(names)[::-1]])
def test_shards_order_and_metadata_do_not_change_the_roots(
    tmp_path: Path, limit: int | None, arrange: Callable[[Any], list[str]]
) -> None:
    specs = [Spec(n, spelled(CHECKPOINT[n]), CHECKPOINT[n].shape) for n in arrange(CHECKPOINT)]
    layouts = plan_shards(specs, max_shard_bytes=limit)
    weight_map = {}
    for i, layout in enumerate(layouts):
        tensors = {spec.name: ArrayTensor(CHECKPOINT[spec.name]) for spec in layout.specs}
        write_file(tmp_path / layout.filename, tensors, {"format": "pt", "part": f"{i}/{limit}"})
        weight_map |= dict.fromkeys(tensors, layout.filename)
    if len(layouts) > 1:
        index = json.dumps({"weight_map": weight_map})
        (tmp_path / "model.safetensors.index.json").write_text(index)
    assert len(layouts) == {None: 1, 10: 3, 1: 5}[limit]
    found = roots(dict(open_checkpoint(tmp_path).tensors))
    assert found == (GOLDEN["weights_root"], GOLDEN["structure_root"])


def test_every_part_of_a_leaf_counts() -> None:
    d = sha(b"x")
    whole = [digest.weights_root([("a", "F32", (2, 3), d)])]
    whole += [digest.weights_root([("b", "F32", (2, 3), d)])]
    whole += [digest.weights_root([("a", "I32", (2, 3), d)])]
    whole += [digest.weights_root([("a", "F32", (3, 2), d)])]
    whole += [digest.weights_root([("a", "F32", (2, 3), sha(b"y"))])]
    whole += [digest.structure_root([("a", (2, 3))]), digest.weights_root([])]
    assert len(set(whole)) == len(whole)


def test_digests_as_text() -> None:
    text = digest.of_bytes(b"")
    assert text == f"sha256:{hashlib.sha256().hexdigest()}"
    assert digest.text(digest.parse(text)) == text
    for wrong in ("", text[7:], text.upper(), text[:-1], f"{text}0", f"md5:{text[7:]}"):
        assert not digest.is_digest(wrong)
        with pytest.raises(ValueError, match="not a sha256 digest"):
            digest.parse(wrong)
