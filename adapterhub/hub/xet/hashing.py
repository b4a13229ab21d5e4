"""The hashes of Xet: chunks, xorbs, files, ranges; and how they are spelled in hexadecimal.

With K(key, data) = blake3 keyed hash (32 bytes), as docs/xet/hashing.md defines them:

    chunk      = K(DATA, its bytes)
    node       = K(NODE, one line "<hex of child> : <bytes below it>\n" per child)
    tree       : nodes of one level are grouped from the left; a group ends with its third or later
                 member whose last 64-bit word is divisible by 4, with its ninth member, or with the
                 level; each group is a node of the next level, until one node is left
    xorb       = root of the tree over its (chunk, length); of one chunk: that chunk's hash
    file       = K(zeros, root of the tree over its chunks); of no bytes: zeros
    range      = K(RANGE, hashes of the chunks, one after the other)

Hexadecimal is not plain: each group of eight bytes is a little-endian number, so its bytes are
written in reverse. The grouping rule is not in the document; it is what hf_xet computes.
"""

from __future__ import annotations

from collections.abc import Iterable

from adapterhub.errors import IntegrityError

HASH_BYTES = 32
ZERO = bytes(HASH_BYTES)
DATA_KEY = bytes.fromhex("6697f5775b9550de3135cbaca597181c9de421109beb2b58b4d0b04b93adf229")
NODE_KEY = bytes.fromhex("017ec5c7a5472996fd946666b48a02e65ddd536f37c76dd2f86352e64a53713f")
RANGE_KEY = bytes.fromhex("7f1857d6ce56ed66127ff913e7a5c3f3a4cd26d5b5db49e64124987f28fb94c3")
GROUP_MIN, GROUP_MAX, GROUP_MEAN = 3, 9, 4


def to_hex(digest: bytes) -> str:
    """64 digits: each eight bytes in reverse."""
    return b"".join(digest[at : at + 8][::-1] for at in range(0, HASH_BYTES, 8)).hex()


def from_hex(digits: str) -> bytes:
    """Inverse of `to_hex`. Raises IntegrityError for anything but 64 lowercase digits."""
    if len(digits) != 64 or set(digits) - set("0123456789abcdef"):
        raise IntegrityError(
            f"{digits[:80]!r} is not a Xet hash: 64 lowercase hexadecimal digits expected",
            remedy="repeat the upload with an unmodified client",
        )
    plain = bytes.fromhex(digits)
    return b"".join(plain[at : at + 8][::-1] for at in range(0, HASH_BYTES, 8))


def _keyed(key: bytes, data: bytes | memoryview) -> bytes:
    from blake3 import blake3

    return blake3(data, key=key).digest()


def chunk_hash(data: bytes | memoryview) -> bytes:
    return _keyed(DATA_KEY, data)


def range_hash(hashes: bytes) -> bytes:
    """Of the concatenated hashes of a term's chunks."""
    return _keyed(RANGE_KEY, hashes)


def xorb_hash(chunks: Iterable[tuple[bytes, int]]) -> bytes:
    """Root over (hash, length in bytes) of each chunk; zeros for none."""
    tree = Tree()
    for digest, length in chunks:
        tree.add(digest, length)
    return tree.root()


def file_hash(chunks: Iterable[tuple[bytes, int]]) -> bytes:
    """Of a file with these (hash, length in bytes); zeros for none."""
    tree = Tree()
    for digest, length in chunks:
        tree.add(digest, length)
    return tree.file_hash()


class Tree:
    """The Merkle tree over chunks that arrive in order; holds at most eight nodes per level."""

    def __init__(self) -> None:
        self._levels: list[list[tuple[bytes, int]]] = [[]]

    def add(self, digest: bytes, length: int, level: int = 0) -> None:
        if level == len(self._levels):
            self._levels.append([])
        waiting = self._levels[level]
        waiting.append((digest, length))
        cut = len(waiting) >= GROUP_MIN and digest[24] % GROUP_MEAN == 0
        if cut or len(waiting) == GROUP_MAX:
            self._close(level)

    def _close(self, level: int) -> None:
        group = self._levels[level]
        self._levels[level] = []
        lines = "".join(f"{to_hex(digest)} : {length}\n" for digest, length in group)
        node = _keyed(NODE_KEY, lines.encode("ascii"))
        self.add(node, sum(length for _, length in group), level + 1)

    def root(self) -> bytes:
        """Closes the tree; call it once."""
        level = 0
        while level + 1 < len(self._levels) or len(self._levels[level]) > 1:
            if self._levels[level]:
                self._close(level)
            level += 1
        return self._levels[level][0][0] if self._levels[level] else ZERO

    def file_hash(self) -> bytes:
        """The root as the hash of a file; call it once."""
        if not any(self._levels):
            return ZERO
        return _keyed(ZERO, self.root())
