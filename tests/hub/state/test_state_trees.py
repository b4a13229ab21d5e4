"""Folders against a plain dict, and against git itself."""

from __future__ import annotations

import hashlib
import sqlite3
import subprocess
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from adapterhub.errors import IntegrityError
from adapterhub.hub.state import objects
from adapterhub.hub.state.edit import Edit
from adapterhub.hub.state.errors import EntryNotFound, InvalidPath
from adapterhub.hub.state.trees import File, Folder, Trees, encode, store

NAMES = st.sampled_from(["a", "b", "c", "ab", "a.txt", "é", "z"])
PATHS = st.lists(NAMES, min_size=1, max_size=4).map("/".join)
STEPS = st.lists(
    st.tuples(st.sampled_from(["put", "remove", "folder", "save"]), PATHS, st.integers(0, 5)),
    max_size=40,
)


class Shelf:
    """Trees in a database that has nothing else."""

    def __init__(self) -> None:
        self.connection = sqlite3.connect(":memory:")
        self.connection.execute("CREATE TABLE trees (repository, key, body, UNIQUE(key))")
        self.trees = Trees(self.connection, 1)

    def save(self, edit: Edit) -> Folder:
        root = edit.save()
        store(self.connection, 1, edit.written)
        return root

    def make(self, files: dict[str, File], root: str | None = None) -> Folder:
        edit = Edit(self.trees, root)
        for path, file in files.items():
            edit.put(path, file)
        return self.save(edit)

    def files(self, root: str) -> dict[str, File]:
        walk = self.trees.walk(root, recursive=True)
        return {path: node for path, node in walk if isinstance(node, File)}

    def bytes(self) -> int:
        (size,) = self.connection.execute("SELECT sum(length(body)) FROM trees").fetchone()
        return int(size)


@pytest.fixture
def shelf() -> Iterator[Shelf]:
    made = Shelf()
    yield made
    made.connection.close()


def a_file(number: int) -> File:
    data = b"%d" % number
    sha256 = hashlib.sha256(data).hexdigest()
    oid = hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()
    return File(f"sha256:{sha256}", len(data), oid, False)


def put(model: dict[str, File], path: str, file: File) -> bool:
    """What a dict of whole paths makes of it: whether it was possible."""
    parents = {path.rsplit("/", n)[0] for n in range(1, path.count("/") + 1)}
    if parents & model.keys() or any(each.startswith(f"{path}/") for each in model):
        return False
    model[path] = file
    return True


@given(STEPS)
def test_a_tree_is_what_a_dict_of_paths_is(steps: list[tuple[str, str, int]]) -> None:
    shelf, model = Shelf(), {}  # type: Shelf, dict[str, File]
    edit = Edit(shelf.trees, None)
    for what, path, number in steps:
        inside = [each for each in model if each.startswith(f"{path}/")]
        if what == "put":
            if put(model, path, a_file(number)):
                edit.put(path, a_file(number))
            else:
                with pytest.raises(InvalidPath):
                    edit.put(path, a_file(number))
        elif what == "remove" and path in model:
            del model[path]
            edit.remove(path)
        elif what == "folder" and inside:
            for each in inside:
                del model[each]
            edit.remove_folder(path)
        elif what == "save":
            edit = Edit(shelf.trees, shelf.save(edit).key)
        else:
            with pytest.raises(EntryNotFound):
                edit.remove(path) if what == "remove" else edit.remove_folder(path)
    root = shelf.save(edit)
    assert shelf.files(root.key) == model
    assert (root.files, root.size) == (len(model), sum(each.size for each in model.values()))
    assert root == shelf.make(dict(reversed(model.items())))  # whatever the way to it
    shelf.connection.close()


@given(st.dictionaries(PATHS, st.integers(0, 5)), st.dictionaries(PATHS, st.integers(0, 5)))
def test_changes_are_what_differs(left: dict[str, int], right: dict[str, int]) -> None:
    shelf, models, roots = Shelf(), [], []  # type: Shelf, list[dict[str, File]], list[str]
    for numbers in (left, right):
        model: dict[str, File] = {}
        for path, number in numbers.items():
            put(model, path, a_file(number))
        models.append(model)
        roots.append(shelf.make(model).key)
    found = list(shelf.trees.changes(*roots))
    files = {p: n for p, _, n in found if isinstance(n, File)}
    gone = {p for p, was, now in found if isinstance(was, File) and not isinstance(now, File)}
    before, after = models
    assert files == {p: f for p, f in after.items() if before.get(p) != f}
    assert gone == before.keys() - after.keys()
    folders = {p for p, was, now in found if isinstance(was, Folder) or isinstance(now, Folder)}
    touched = {*files, *gone}
    assert folders == {p.rsplit("/", n)[0] for p in touched for n in range(1, p.count("/") + 1)}
    shelf.connection.close()


@given(st.dictionaries(PATHS, st.integers(0, 5)), st.booleans(), st.integers(1, 7))
def test_pages_together_are_the_whole(numbers: dict[str, int], recursive: bool, size: int) -> None:
    shelf, model = Shelf(), {}  # type: Shelf, dict[str, File]
    for path, number in numbers.items():
        put(model, path, a_file(number))
    root = shelf.make(model).key
    whole = list(shelf.trees.walk(root, recursive=recursive))
    paged, after = [], ""
    while page := list(islice(shelf.trees.walk(root, recursive=recursive, after=after), size)):
        paged += page
        after = page[-1][0]
    assert paged == whole
    assert [p.split("/") for p, _ in whole] == sorted(p.split("/") for p, _ in whole)
    shelf.connection.close()


def git(folder: Path, *words: str, stdin: bytes = b"") -> str:
    run = subprocess.run(["git", *words], cwd=folder, input=stdin, capture_output=True, check=True)
    return run.stdout.decode().strip()


def test_ids_are_those_of_git(tmp_path: Path, shelf: Shelf) -> None:
    names = ["b", "a/x", "a.txt", "a0", "Über/ж.txt", "deep/er/and/deeper"]
    root = shelf.make({name: a_file(n) for n, name in enumerate(names)})
    git(tmp_path, "init", "-q")
    for number, name in enumerate(names):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"%d" % number)
    git(tmp_path, "-c", "core.autocrlf=false", "add", ".")
    assert git(tmp_path, "write-tree") == root.oid
    pointer = objects.pointer("0" * 64, 12)
    assert git(tmp_path, "hash-object", "--stdin", stdin=pointer) == objects.pointer_oid(
        "0" * 64, 12
    )
    made = objects.commit_oid(root.oid, "1" * 40, "ann", 1_700_000_000, "Title\n\nText", "2" * 64)
    text = (
        f"tree {root.oid}\nparent {'1' * 40}\nauthor ann <> 1700000000 +0000\n"
        f"committer ann <> 1700000000 +0000\ncontent sha256:{'2' * 64}\n\nTitle\n\nText"
    )
    words = ("hash-object", "-t", "commit", "--literally", "--stdin")
    assert git(tmp_path, *words, stdin=text.encode()) == made


def test_a_large_folder_shares_its_pieces(shelf: Shelf) -> None:
    files = {f"f{n:05}": a_file(n) for n in range(3000)}
    root = shelf.make(files)
    first = shelf.bytes()
    for number in range(30):
        root = shelf.make({f"f{number * 97:05}": a_file(9999), f"new{number}": a_file(1)}, root.key)
        files |= {f"f{number * 97:05}": a_file(9999), f"new{number}": a_file(1)}
    assert shelf.files(root.key) == files
    assert shelf.bytes() < first * 6  # 31 whole copies otherwise
    assert shelf.make(files).key == root.key
    assert shelf.trees.get(root.key, "f02999") == a_file(2999)
    assert shelf.trees.get(root.key, "f02999x") is None
    assert shelf.trees.get(root.key, "zzz") is None


def test_names_chosen_against_the_cuts_still_make_pieces(shelf: Shelf) -> None:
    import zlib

    names = (f"n{n}" for n in range(10**6))
    chosen = list(islice((n for n in names if zlib.crc32(n.encode()) % 128), 3000))
    root = shelf.make({name: a_file(1) for name in chosen})
    assert len(shelf.trees.keys(root.key)) == 3
    assert len(shelf.files(root.key)) == 3000


def test_names_that_differ_in_case_only_are_refused() -> None:
    shelf = Shelf()
    for names in (["a", "A"], ["é", "e\u0301"], ["straße", "STRASSE"], ["d/x", "D/y"]):
        with pytest.raises(InvalidPath, match="are one file where case is ignored"):
            shelf.make({name: a_file(1) for name in names})
    shelf.make({"d/a": a_file(1), "e/A": a_file(1)})
    shelf.connection.close()


def test_damage_is_named(shelf: Shelf) -> None:
    root = shelf.make({"a": a_file(1)})
    with pytest.raises(IntegrityError, match=f"tree {'0' * 64} is missing from hub.db"):
        shelf.trees.nodes("0" * 64)
    shelf.connection.execute("UPDATE trees SET body = ? WHERE key = ?", (b"junk", root.key))
    with pytest.raises(IntegrityError, match=f"tree {root.key} in hub.db is damaged"):
        shelf.trees.nodes(root.key)


def test_an_empty_tree_is_a_tree(shelf: Shelf) -> None:
    root, bodies = encode({})
    store(shelf.connection, 1, bodies)
    assert shelf.trees.nodes(root.key) == {}
    assert root.oid == "4b825dc642cb6eb9a060e54bf8d69288fbee4904"
    with pytest.raises(EntryNotFound, match="no file or folder ''"):
        shelf.trees.find(root.key, "")
