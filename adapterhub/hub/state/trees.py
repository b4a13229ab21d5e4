"""Folders: immutable, named by the sha256 of what is in them, shared between revisions.

A commit that changes one file writes the folders above that file, and no others. A large folder
is kept in pieces, cut behind names that happen to have a certain checksum: so one more file makes
one new piece, and the other pieces are those of the folder before.
"""

from __future__ import annotations

import hashlib
import json
import sqlite3
import zlib
from bisect import bisect_left
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any

from adapterhub import digest as digests
from adapterhub.errors import IntegrityError
from adapterhub.hub.state import objects
from adapterhub.hub.state.errors import EntryNotFound
from adapterhub.hub.state.paths import shown

_CUT = 128  # entries of a piece, on average
_LONGEST = 1024  # also where names were chosen to prevent cuts


@dataclass(frozen=True)
class File:
    """`digest` names the store's blob; `oid` is what git would call the file (or its pointer)."""

    digest: str
    size: int
    oid: str
    lfs: bool

    @property
    def sha256(self) -> str:
        return self.digest.removeprefix(digests.PREFIX)


@dataclass(frozen=True)
class Folder:
    """`key` finds its contents; `files` and `size` (bytes) count all that is below it."""

    key: str
    oid: str
    files: int
    size: int


Node = File | Folder
Nodes = dict[str, Node]
Bodies = dict[str, bytes]


def encode(nodes: Nodes) -> tuple[Folder, Bodies]:
    """A folder, and the bodies it is kept in: each under its own sha256, one under the key."""
    bodies: Bodies = {}
    pieces = [[names[-1], _encode_piece(nodes, names, bodies)] for names in _cut(sorted(nodes))]
    key = pieces[0][1] if len(pieces) == 1 else _put(pieces, bodies)
    oid = objects.tree_oid((name, n.oid, isinstance(n, Folder)) for name, n in nodes.items())
    files = sum(node.files if isinstance(node, Folder) else 1 for node in nodes.values())
    size = sum(node.size for node in nodes.values())
    return Folder(key, oid, files, size), bodies


def _encode_piece(nodes: Nodes, names: list[str], bodies: Bodies) -> str:
    return _put({name: _row(nodes[name]) for name in names if name}, bodies)


def _row(node: Node) -> list[object]:
    if isinstance(node, File):
        return [node.sha256, node.size, node.oid, int(node.lfs)]
    return [node.key, node.size, node.oid, "folder", node.files]


def _node(row: list[Any]) -> Node:
    if row[3] == "folder":
        return Folder(row[0], row[2], row[4], row[1])
    return File(digests.PREFIX + row[0], row[1], row[2], bool(row[3]))


def _put(document: object, bodies: Bodies) -> str:
    body = json.dumps(document, separators=(",", ":")).encode()
    key = hashlib.sha256(body).hexdigest()
    bodies[key] = body
    return key


def _cut(names: list[str]) -> Iterator[list[str]]:
    """Where it cuts depends on the names around only. One empty name where there is none."""
    start = 0
    for end, name in enumerate(names, start=1):
        if end - start == _LONGEST or zlib.crc32(name.encode()) % _CUT == 0:
            yield names[start:end]
            start = end
    if start < len(names) or not names:
        yield names[start:] or [""]


class Trees:
    """Reads the folders of one repository."""

    def __init__(self, connection: sqlite3.Connection, repository: int) -> None:
        self._connection = connection
        self._repository = repository

    def nodes(self, key: str) -> Nodes:
        """All that is in a folder. Raises IntegrityError."""
        return dict(self.scan(key))

    def folder(self, key: str) -> Folder:
        """What its parent's row would say of it."""
        return replace(encode(self.nodes(key))[0], key=key)

    def get(self, key: str, name: str) -> Node | None:
        for found, node in self.scan(key, name):
            return node if found == name else None
        return None

    def scan(self, key: str, start: str = "") -> Iterator[tuple[str, Node]]:
        """What is in a folder, sorted, from the name `start` on."""
        document = self._load(key)
        if isinstance(document, dict):
            rows = sorted(document.items())
            yield from ((name, _node(row)) for name, row in rows if name >= start)
            return
        first = bisect_left([last for last, _ in document], start)
        for _, piece in document[first:]:
            yield from self.scan(piece, start)

    def keys(self, key: str) -> frozenset[str]:
        """Of the pieces of a folder; its own where it is in one."""
        document = self._load(key)
        return frozenset([key] if isinstance(document, dict) else [each for _, each in document])

    def find(self, root: str, path: str) -> Node:
        """What lies at `path`. Raises EntryNotFound."""
        key: str | None = root
        node: Node | None = None
        for part in path.split("/"):
            node = None if key is None else self.get(key, part)
            key = node.key if isinstance(node, Folder) else None
        if node is None:
            raise EntryNotFound(f"no file or folder {shown(path)}", remedy="list the folder")
        return node

    def walk(
        self, key: str, folder: str = "", *, recursive: bool = False, after: str = ""
    ) -> Iterator[tuple[str, Node]]:
        """`(path, node)` below a folder, in the order of their paths' parts, behind `after`."""
        skip = after.split("/")
        depth = folder.count("/") + 1 if folder else 0
        bound = skip[depth] if after and depth < len(skip) else ""
        for name, node in self.scan(key, bound):
            path = f"{folder}/{name}" if folder else name
            behind = bool(bound) and name == bound  # it, or one below it, was the last one given
            if not behind:
                yield path, node
            if recursive and isinstance(node, Folder):
                rest = after if behind else ""
                yield from self.walk(node.key, path, recursive=True, after=rest)

    def changes(
        self, old: str | None, new: str | None, folder: str = ""
    ) -> Iterator[tuple[str, Node | None, Node | None]]:
        """`(path, before, after)` of every file and folder that differs; None: is not there."""
        if old == new:
            return
        keys = [self.keys(key) if key else frozenset() for key in (old, new)]
        before, after = (self._pieces(mine - (keys[0] & keys[1])) for mine in keys)
        for name in sorted(before.keys() | after.keys()):
            was, now = before.get(name), after.get(name)
            if was == now:
                continue
            path = f"{folder}/{name}" if folder else name
            yield path, was, now
            yield from self.changes(_key(was), _key(now), path)

    def _pieces(self, keys: Iterable[str]) -> Nodes:
        return {name: node for key in keys for name, node in self.scan(key)}

    def _load(self, key: str) -> Any:
        sql = "SELECT body FROM trees WHERE repository = ? AND key = ?"
        row = self._connection.execute(sql, (self._repository, key)).fetchone()
        if row is None:
            raise IntegrityError(f"tree {key} is missing from hub.db", remedy="restore hub.db")
        return decode(key, row[0])


def _key(node: Node | None) -> str | None:
    return node.key if isinstance(node, Folder) else None


def decode(key: str, packed: bytes) -> Any:
    """The document of one row. Raises IntegrityError."""
    try:
        body = zlib.decompress(packed)
    except zlib.error:
        body = b""
    if hashlib.sha256(body).hexdigest() != key:
        raise IntegrityError(f"tree {key} in hub.db is damaged", remedy="restore hub.db")
    return json.loads(body)


def store(connection: sqlite3.Connection, repository: int, bodies: Bodies) -> None:
    """Writes those that are not there yet."""
    known = "SELECT 1 FROM trees WHERE repository = ? AND key = ?"
    for key, body in bodies.items():
        if connection.execute(known, (repository, key)).fetchone() is None:
            row = (repository, key, zlib.compress(body, 1))
            connection.execute("INSERT INTO trees (repository, key, body) VALUES (?, ?, ?)", row)
