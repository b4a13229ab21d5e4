"""Ids and paths as hostile people write them."""

from __future__ import annotations

import pytest
import statekit
from hypothesis import given
from hypothesis import strategies as st

from adapterhub.hub.state.errors import InvalidPath, InvalidRequest
from adapterhub.hub.state.names import check_namespace, parse_id
from adapterhub.hub.state.operations import Add, Copy, DeleteFolder
from adapterhub.hub.state.paths import check_folder, check_path, check_siblings, fold
from adapterhub.hub.state.repositories import Repository
from adapterhub.hub.state.state import Hub


@pytest.mark.parametrize("text", ["name", "ns/name", "A_b/c.d-e", "a/b", "x" * 96, "0/1"])
def test_ids_that_are_fine(text: str) -> None:
    assert str(parse_id(text)) == text


@pytest.mark.parametrize(
    "text",
    [
        "",
        "/",
        "a/",
        "/a",
        "a/b/c",
        "../a",
        "a/..",
        "a--b/c",
        "a..b",
        ".a/b",
        "a/.b",
        "-a/b",
        "a/b-",
        "a/b.git",
        "a/b.GIT",
        "a b/c",
        "a/b\n",
        "ä/b",
        "a/b\x00",
        "x" * 97,
        "api/x",
        "Datasets/x",
        "health",
        "xet/x",
        "a\\b",
        "a%2Fb",
        None,
        7,
        ["a"],
    ],
)
def test_ids_that_are_refused(text: object) -> None:
    with pytest.raises(InvalidRequest) as caught:
        parse_id(text)
    assert caught.value.status == 400 and caught.value.message.isprintable()


def test_types_and_namespaces() -> None:
    assert parse_id("a/b", "dataset").kind == "dataset"
    with pytest.raises(InvalidRequest, match="no such type of repository: 'kernel'"):
        parse_id("a/b", "kernel")
    assert check_namespace("team") == "team"
    for wrong in ("a/b", "", "*", "api"):
        with pytest.raises(InvalidRequest):
            check_namespace(wrong)


HOSTILE = [
    "",
    "/",
    "/etc/passwd",
    "../a",
    "a/../b",
    "a/./b",
    ".",
    "..",
    "a//b",
    "a/",
    "a\\b",
    "..\\a",
    "C:/a",
    "c:a",
    "a\x00b",
    "a\nb",
    "a\x7f",
    "a\u2028b",
    "a\ud800",
    ".git/config",
    "d/.GIT/hooks/x",
    ".git./x",
    ".git /x",
    "git~1/x",
    ".g\u200cit/x",
    "a\u202egpj.exe",
    "x" * 256,
    "é" * 128,
    "/".join(["abcdefghi"] * 120),
    "/".join("d" * 33),
]


@pytest.mark.parametrize("path", HOSTILE)
def test_paths_that_are_refused(shared: tuple[Hub, Repository], path: str) -> None:
    hub, repository = shared
    with pytest.raises(InvalidPath, match=r"^path '") as caught:
        check_path(path)
    assert caught.value.status == 400
    assert caught.value.message.isprintable() and len(caught.value.message) < 600
    with pytest.raises(InvalidPath):
        statekit.commit(hub, repository, {path: b"1"})
    digest = "sha256:" + "0" * 64
    for operation in (Add(path, digest), Copy("a", path), Copy(path, "a"), DeleteFolder(path)):
        if isinstance(operation, DeleteFolder) and path == "a/":
            continue
        with pytest.raises(InvalidPath):
            statekit.commit(hub, repository, None, operation)


def test_paths_that_are_fine() -> None:
    for path in ("a", "a/b.c", ".gitattributes", ".github/x", "a b/ü", "..a", "a..b", "x" * 255):
        assert check_path(path) == path
    assert check_folder("a/b/") == "a/b"
    for wrong in (None, 7, b"a"):
        with pytest.raises(InvalidPath, match="a path is a string"):
            check_path(wrong)


@given(st.text(max_size=20))
def test_what_passes_stays_below_its_folder(text: str) -> None:
    try:
        parts = check_path(text).split("/")
    except InvalidPath:
        return
    assert all(part not in ("", ".", "..") for part in parts)
    assert fold(fold(text)) == fold(text)
    text.encode()


@given(st.text(st.characters(codec="ascii"), max_size=10))
def test_the_short_way_of_folding_is_the_long_one(text: str) -> None:
    import unicodedata

    long = unicodedata.normalize("NFC", unicodedata.normalize("NFD", text).casefold())
    assert fold(text) == long


def test_siblings() -> None:
    check_siblings("d", ["a", "b", "ab"])
    with pytest.raises(InvalidPath, match="'B' and 'b' in folder 'd' are one file"):
        check_siblings("d", ["a", "b", "B"])
