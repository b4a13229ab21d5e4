"""Digests: sha256, canonical JSON, and the Merkle roots that name tensors and checkpoints.

Definitions, with H = sha256 and ‖ = concatenation:

    D(tensor)       = merkle of the sha256 of its raw little-endian C-order bytes,
                      cut into chunks of 4 MiB (an empty tensor is one empty chunk)
    leaf(tensor)    = H(0x00 ‖ canonical([name, dtype, shape]) ‖ D)
    node(l, r)      = H(0x01 ‖ l ‖ r); an odd node is carried to the next level as it is
    root(tag, ls)   = H(tag ‖ 0x00 ‖ uint64 big-endian(len(ls)) ‖ merkle(ls))
    weights_root    = root("adapterhub/weights_root/v1", leaves sorted by UTF-8 name)
    structure_root  = the same over H(0x00 ‖ canonical([name, shape])),
                      with the tag "adapterhub/structure_root/v1"

A chunk and an inner node cannot be confused, although chunks carry no prefix byte: the leaf
binds dtype and shape, hence the number of chunks and so the shape of the tree above them.
Roots depend on neither sharding, nor the order in a file, nor safetensors metadata.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

CHUNK_BYTES = 4 * 1024 * 1024
WEIGHTS_TAG = b"adapterhub/weights_root/v1"
STRUCTURE_TAG = b"adapterhub/structure_root/v1"
PREFIX = "sha256:"


def sha256(data: bytes | bytearray | memoryview) -> bytes:
    return hashlib.sha256(data).digest()


def text(digest: bytes) -> str:
    """`sha256:` and 64 hexadecimal digits."""
    return PREFIX + digest.hex()


def parse(digest: str) -> bytes:
    """Inverse of `text`. Raises ValueError."""
    if not is_digest(digest):
        raise ValueError(f"not a sha256 digest: {digest!r}")
    return bytes.fromhex(digest.removeprefix(PREFIX))


def is_digest(value: str) -> bool:
    digits = value.removeprefix(PREFIX)
    return (
        value.startswith(PREFIX) and len(digits) == 64 and not set(digits) - set("0123456789abcdef")
    )


def of_bytes(data: bytes) -> str:
    return text(sha256(data))


def of_file(path: Path) -> str:
    with path.open("rb") as file:
        return text(hashlib.file_digest(file, "sha256").digest())


# --- canonical JSON ---------------------------------------------------------------------------


def canonical(value: Any) -> bytes:
    """JSON with one spelling per value, as RFC 8785 (JCS) defines it.

    Keys sorted by UTF-16 code units, no white space, numbers as ECMAScript prints them. Integers
    beyond 2^53 are refused, since other readers would round them. Raises ValueError.
    """
    return _canonical(value).encode("utf-8")


def _canonical(value: Any) -> str:
    if value is None or isinstance(value, (bool, str)):
        return json.dumps(value, ensure_ascii=False)
    if isinstance(value, int):
        if abs(value) > 2**53:
            raise ValueError(f"integer {value} is beyond 2^53 and has no canonical JSON")
        return str(value)
    if isinstance(value, float):
        return _ecmascript_number(value)
    if isinstance(value, Mapping):
        if not all(isinstance(key, str) for key in value):
            raise ValueError("canonical JSON needs keys that are strings")
        items = sorted(value.items(), key=lambda item: item[0].encode("utf-16-be"))
        return "{" + ",".join(f"{_canonical(k)}:{_canonical(v)}" for k, v in items) + "}"
    if isinstance(value, Sequence) and not isinstance(value, (bytes, bytearray)):
        return "[" + ",".join(_canonical(item) for item in value) + "]"
    raise ValueError(f"{type(value).__name__} has no canonical JSON")


def _ecmascript_number(value: float) -> str:
    """Number::toString of ECMA-262, from Python's shortest round-trip digits."""
    if not math.isfinite(value):
        raise ValueError(f"{value} has no canonical JSON")
    if value == 0:
        return "0"
    sign = "-" if value < 0 else ""
    mantissa, _, exponent = f"{abs(value)!r}".partition("e")
    whole, _, fraction = mantissa.partition(".")
    digits = (whole + fraction).lstrip("0")
    point = len(whole) + int(exponent or 0) - (len(whole + fraction) - len(digits))
    digits = digits.rstrip("0")
    count = len(digits)
    if count <= point <= 21:
        return sign + digits + "0" * (point - count)
    if 0 < point <= 21:
        return f"{sign}{digits[:point]}.{digits[point:]}"
    if -6 < point <= 0:
        return f"{sign}0.{'0' * -point}{digits}"
    tail = f".{digits[1:]}" if count > 1 else ""
    return f"{sign}{digits[0]}{tail}e{point - 1:+d}"


# --- Merkle trees -----------------------------------------------------------------------------


def merkle(hashes: Sequence[bytes]) -> bytes:
    """Root of a list of digests; H(empty) for none. An odd node is carried."""
    if not hashes:
        return sha256(b"")
    level = list(hashes)
    while len(level) > 1:
        paired = [sha256(b"\x01" + a + b) for a, b in zip(level[::2], level[1::2], strict=False)]
        level = paired + ([level[-1]] if len(level) % 2 else [])
    return level[0]


def chunks(nbytes: int) -> list[tuple[int, int]]:
    """`(start, length)` of each chunk of a tensor of `nbytes` bytes; never empty."""
    starts = range(0, nbytes, CHUNK_BYTES) if nbytes else (0,)
    return [(start, min(CHUNK_BYTES, nbytes - start)) for start in starts]


def of_tensor(data: bytes | memoryview) -> bytes:
    """D of a tensor whose bytes are in memory."""
    view = memoryview(data).cast("B")
    return merkle([sha256(view[start : start + n]) for start, n in chunks(len(view))])


class TensorHasher:
    """D of a tensor whose bytes arrive in order, in pieces of any size."""

    def __init__(self) -> None:
        self._done: list[bytes] = []
        self._chunk = hashlib.sha256()
        self._filled = 0

    def update(self, data: bytes | memoryview) -> None:
        view = memoryview(data).cast("B")
        while len(view):
            if self._filled == CHUNK_BYTES:
                self._close_chunk()
            piece = view[: CHUNK_BYTES - self._filled]
            self._chunk.update(piece)
            self._filled += len(piece)
            view = view[len(piece) :]

    def _close_chunk(self) -> None:
        self._done.append(self._chunk.digest())
        self._chunk = hashlib.sha256()
        self._filled = 0

    def digest(self) -> bytes:
        return merkle([*self._done, self._chunk.digest()])


def leaf(name: str, dtype: str, shape: Sequence[int], data: bytes) -> bytes:
    """Leaf of one tensor; `dtype` is spelled as in safetensors (`BF16`), `data` is its D."""
    return sha256(b"\x00" + canonical([name, dtype, list(shape)]) + data)


def structure_leaf(name: str, shape: Sequence[int]) -> bytes:
    return sha256(b"\x00" + canonical([name, list(shape)]))


def root(tag: bytes, leaves: Mapping[str, bytes]) -> str:
    """Root over `leaves` (tensor name → leaf), in the order of their UTF-8 names."""
    ordered = [leaves[name] for name in sorted(leaves, key=lambda name: name.encode("utf-8"))]
    count = len(ordered).to_bytes(8, "big")
    return text(sha256(tag + b"\x00" + count + merkle(ordered)))


def weights_root(tensors: Iterable[tuple[str, str, Sequence[int], bytes]]) -> str:
    """Root over `(name, dtype, shape, D)` of every tensor."""
    return root(WEIGHTS_TAG, {n: leaf(n, dtype, shape, d) for n, dtype, shape, d in tensors})


def structure_root(tensors: Iterable[tuple[str, Sequence[int]]]) -> str:
    """Root over `(name, shape)` of every tensor as stored."""
    return root(STRUCTURE_TAG, {name: structure_leaf(name, shape) for name, shape in tensors})
