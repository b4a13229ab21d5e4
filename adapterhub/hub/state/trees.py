"""Folders: immutable, named by the sha256 of what is in them, shared between revisions.

A commit that changes one file writes the folders above that file, and no others.
"""

from __future__ import annotations

import hashlib
import json
import sqlite3
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from adapterhub import digest as digests
from adapterhub.errors import IntegrityError
from adapterhub.hub.state import objects
from adapterhub.hub.state.errors import EntryNotFound, InvalidPath
from adapterhub.hub.state.paths import check_siblings, shown


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
Load = Callable[[str], Nodes]


def encode(nodes: Nodes) -> tuple[Folder, bytes]:
    """A folder, and the bytes that its key is the sha256 of."""
    rows = {name: [type(node).__name__, *vars(node).values()] for name, node in nodes.items()}
    body = json.dumps(rows, sort_keys=True, separators=(",", ":")).encode()
    oid = objects.tree_oid((name, n.oid, isinstance(n, Folder)) for name, n in nodes.items())
    files = sum(node.files if isinstance(node, Folder) else 1 for node in nodes.values())
    size = sum(node.size for node in nodes.values())
    return Folder(hashlib.sha256(body).hexdigest(), oid, files, size), body


def decode(key: str, body: bytes) -> Nodes:
    """Inverse of `encode`. Raises IntegrityError."""
    if hashlib.sha256(body).hexdigest() != key:
        raise IntegrityError(f"tree {key} in hub.db is damaged", remedy="restore hub.db")
    kinds: dict[str, type[Node]] = {"File": File, "Folder": Folder}
    return {name: kinds[row[0]](*row[1:]) for name, row in json.loads(body).items()}


def loader(connection: sqlite3.Connection, repository: int) -> Load:
    def load(key: str) -> Nodes:
        sql = "SELECT body FROM trees WHERE repository = ? AND key = ?"
        row = connection.execute(sql, (repository, key)).fetchone()
        if row is None:
            raise IntegrityError(f"tree {key} is missing from hub.db", remedy="restore hub.db")
        return decode(key, row[0])

    return load


def find(load: Load, root: str, path: str) -> Node:
    """What lies at `path`. Raises EntryNotFound."""
    key = root
    node: Node | None = None
    for part in path.split("/"):
        node = None if isinstance(node, File) else load(key).get(part)
        if node is None:
            raise EntryNotFound(f"no file or folder {shown(path)}", remedy="list the folder")
        key = node.key if isinstance(node, Folder) else ""
    if node is None:
        raise EntryNotFound("no path was given", remedy="give one")
    return node


def walk(
    load: Load, key: str, folder: str = "", *, recursive: bool = False, after: str = ""
) -> Iterator[tuple[str, Node]]:
    """`(path, node)` below a folder, in the order of their paths' parts, behind `after`."""
    skip = after.split("/")
    depth = folder.count("/") + 1 if folder else 0
    nodes = load(key)
    bound = skip[depth] if after and depth < len(skip) else ""
    for name in sorted(nodes):
        if name < bound:
            continue
        path = f"{folder}/{name}" if folder else name
        node = nodes[name]
        behind = bool(bound) and name == bound  # it, or a file below it, was the last one given
        if not behind:
            yield path, node
        if recursive and isinstance(node, Folder):
            yield from walk(load, node.key, path, recursive=True, after=after if behind else "")


@dataclass
class _Open:
    """A folder being changed; `nodes` holds what is not open itself."""

    nodes: Nodes
    open: dict[str, _Open] = field(default_factory=dict)


class Edit:
    """Changes to a tree, kept in memory until `save`. Opens only the folders that it needs."""

    def __init__(self, load: Load, root: str | None) -> None:
        self._load = load
        self._root = _Open(load(root) if root else {})
        self.written: dict[str, bytes] = {}

    def put(self, path: str, file: File) -> None:
        """Raises InvalidPath where a folder is in the way."""
        *folders, name = path.split("/")
        here = self._root
        for depth, part in enumerate(folders):
            if isinstance(here.nodes.get(part), File):
                clash = "/".join(folders[: depth + 1])
                raise InvalidPath(
                    f"{shown(path)} needs a folder where {shown(clash)} is a file",
                    remedy="delete that file in the same commit, before",
                )
            here = self._enter(here, part) or here.open.setdefault(part, _Open({}))
        inner = self._enter(here, name)
        if inner is not None and not _is_empty(inner):
            raise InvalidPath(
                f"{shown(path)} is a folder and cannot become a file",
                remedy="delete the folder in the same commit, before",
            )
        here.open.pop(name, None)
        here.nodes[name] = file

    def remove(self, path: str) -> None:
        """Takes a file away. Raises EntryNotFound."""
        here, name = self._parent(path)
        if here is None or not isinstance(here.nodes.get(name), File):
            raise EntryNotFound(f"no file {shown(path)} to delete", remedy="list the folder")
        del here.nodes[name]

    def remove_folder(self, path: str) -> None:
        """Takes a folder away with all that is in it. Raises EntryNotFound."""
        here, name = self._parent(path)
        inner = self._enter(here, name) if here else None
        if here is None or inner is None or _is_empty(inner):
            raise EntryNotFound(f"no folder {shown(path)} to delete", remedy="list the folder")
        del here.open[name]

    def save(self) -> Folder:
        """The tree as it is now; `written` holds the folders on the way, by key.

        Raises InvalidPath where names of a changed folder differ in case only.
        """
        return self._save(self._root, "")

    def _save(self, folder: _Open, path: str) -> Folder:
        nodes = dict(folder.nodes)
        for name, inner in folder.open.items():
            if not _is_empty(inner):
                nodes[name] = self._save(inner, f"{path}/{name}" if path else name)
        check_siblings(path, sorted(nodes))
        made, body = encode(nodes)
        self.written[made.key] = body
        return made

    def _parent(self, path: str) -> tuple[_Open | None, str]:
        *folders, name = path.split("/")
        here: _Open | None = self._root
        for part in folders:
            here = self._enter(here, part) if here else None
        return here, name

    def _enter(self, here: _Open, part: str) -> _Open | None:
        node = here.nodes.get(part)
        if isinstance(node, Folder):
            here.open[part] = _Open(self._load(node.key))
            del here.nodes[part]
        return here.open.get(part)


def _is_empty(folder: _Open) -> bool:
    return not folder.nodes and all(map(_is_empty, folder.open.values()))
