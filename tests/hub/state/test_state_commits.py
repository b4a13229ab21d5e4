"""What commits do to a branch, and what is read of them."""

from __future__ import annotations

import re
from typing import Any

import pytest
import statekit

from adapterhub.hub.state.errors import (
    EntryNotFound,
    InvalidPath,
    InvalidRequest,
    RevisionNotFound,
    Stale,
    TooLarge,
)
from adapterhub.hub.state.limits import Limits
from adapterhub.hub.state.operations import Add, Copy, Delete, DeleteFolder, Request
from adapterhub.hub.state.repositories import Repository
from adapterhub.hub.state.state import Hub
from adapterhub.hub.state.trees import File, Folder
from adapterhub.store import Store


def test_a_repository_begins_with_gitattributes(hub: Hub, repository: Repository) -> None:
    (entry,) = hub.tree(repository, "main").entries
    first = hub.commit_of(repository, "main")
    assert (entry.path, first.title, first.author, first.parent) == (
        ".gitattributes",
        "initial commit",
        "system",
        None,
    )
    assert re.fullmatch("[0-9a-f]{40}", first.id)
    assert isinstance(entry.node, File)
    with hub.store.open_blob(entry.node.digest) as file:
        assert b"*.safetensors filter=lfs diff=lfs merge=lfs -text\n" in file.readlines()


def test_every_revision_stays(hub: Hub, repository: Repository) -> None:
    states: list[dict[str, bytes]] = [{"a": b"1"}, {"a": b"2", "d/b": b"1"}, {"d/b": b"3"}]
    made = [statekit.commit(hub, repository, state).commit for state in states[:2]]
    made.append(statekit.commit(hub, repository, {"d/b": b"3"}, gone=["a"]).commit)
    for commit, state in zip(made, states, strict=True):
        assert statekit.read(hub, repository, commit.id) == state
    assert [each.parent for each in made[1:]] == [each.id for each in made[:-1]]
    log = hub.log(repository, "main")
    assert [each.id for each in log.commits[:3]] == [each.id for each in reversed(made)]
    assert (log.total, log.after, log.commits[-1].title) == (4, None, "initial commit")


def test_operations_are_carried_out_in_order(hub: Hub, repository: Repository) -> None:
    statekit.commit(hub, repository, {"d/a": b"1", "d/e/b": b"2", "c": b"3"})
    statekit.commit(
        hub,
        repository,
        None,
        Copy("d", "copy/of"),
        DeleteFolder("d/"),
        *statekit.adds(hub, repository, {"d": b"now a file"}),
        Copy("d/a", "still"),  # as the parent has it
        Delete("c"),
    )
    assert statekit.read(hub, repository) == {
        "copy/of/a": b"1",
        "copy/of/e/b": b"2",
        "d": b"now a file",
        "still": b"1",
    }


def test_copies_come_from_any_revision(hub: Hub, repository: Repository) -> None:
    old = statekit.commit(hub, repository, {"a": b"1"}).commit.id
    statekit.commit(hub, repository, {"a": b"2"})
    statekit.commit(hub, repository, None, Copy("a", "b", old))
    assert statekit.read(hub, repository) == {"a": b"2", "b": b"1"}
    with pytest.raises(EntryNotFound, match="no file or folder 'gone'"):
        statekit.commit(hub, repository, None, Copy("gone", "b"))
    with pytest.raises(RevisionNotFound):
        statekit.commit(hub, repository, None, Copy("a", "b", "nowhere"))


def test_an_lfs_file_without_size_is_one_that_is_there(hub: Hub, repository: Repository) -> None:
    digest = hub.contents.put_bytes(repository, b"weights").digest
    statekit.commit(hub, repository, None, Add("w.bin", digest, lfs=True, size=7))
    statekit.commit(hub, repository, None, Add("copy.bin", digest, lfs=True))
    one, two = (hub.file(repository, "main", path).file for path in ("w.bin", "copy.bin"))
    assert one == two and one.lfs and one.sha256 == digest.removeprefix("sha256:")
    unknown = "sha256:" + "0" * 64
    with pytest.raises(InvalidRequest, match=f"{unknown} was not uploaded to ns/name"):
        statekit.commit(hub, repository, None, Add("x.bin", unknown, lfs=True))
    with pytest.raises(InvalidRequest, match=r"'w\.bin' has 7 bytes, and the commit says 8"):
        statekit.commit(hub, repository, None, Add("w.bin", digest, lfs=True, size=8))


def test_what_another_repository_has_is_not_to_be_had_by_its_digest(
    hub: Hub, repository: Repository
) -> None:
    secret = hub.create(statekit.other("else/where"))
    statekit.commit(hub, secret, {"a": b"secret"})
    digest = hub.file(secret, "main", "a").file.digest
    with pytest.raises(InvalidRequest, match="was not uploaded to ns/name"):
        statekit.commit(hub, repository, None, Add("a", digest))
    hub.contents.share(secret, repository, digest)
    statekit.commit(hub, repository, None, Add("a", digest))
    assert statekit.read(hub, repository) == {"a": b"secret"}


def test_a_stale_parent_is_refused(hub: Hub, repository: Repository) -> None:
    first = hub.commit_of(repository, "main").id
    second = statekit.commit(hub, repository, {"a": b"1"}, parent=first).commit.id
    with pytest.raises(Stale, match=f"main of ns/name is at {second}, not at {first}") as caught:
        statekit.commit(hub, repository, {"a": b"2"}, parent=first)
    assert (caught.value.head, caught.value.status) == (second, 412)
    assert statekit.read(hub, repository) == {"a": b"1"}
    assert (
        statekit.commit(hub, repository, {"a": b"2"}, parent=second[:5].upper()).commit.depth == 3
    )
    with pytest.raises(Stale):
        statekit.commit(hub, repository, {"a": b"3"}, parent="0" * 40)
    with pytest.raises(InvalidRequest, match="the parent 'main' is not a commit"):
        statekit.commit(hub, repository, {"a": b"3"}, parent="main")


def test_a_repeated_request_gives_the_same_commit(hub: Hub, repository: Repository) -> None:
    first = hub.commit_of(repository, "main").id
    made = statekit.commit(hub, repository, {"a": b"1", "b": b"1"}, parent=first)
    assert not made.repeated
    again = statekit.commit(hub, repository, {"a": b"1", "b": b"1"}, parent=first)
    assert again.repeated and again.commit == made.commit
    without = statekit.commit(hub, repository, None, gone=["b"])
    assert statekit.commit(hub, repository, None, gone=["b"]).commit == without.commit
    late = statekit.commit(hub, repository, {"a": b"1", "b": b"1"}, parent=first)
    assert late.repeated and late.commit == made.commit  # the branch has moved on since
    anew = statekit.commit(hub, repository, {"a": b"1", "b": b"1"})
    assert not anew.repeated and anew.commit.depth == 4


def test_a_repeated_request_of_another_branch_is_a_new_one(
    hub: Hub, repository: Repository, clock: statekit.Clock
) -> None:
    first = hub.commit_of(repository, "main").id
    hub.refs.create_branch(repository, "dev")
    on_dev = statekit.commit(hub, repository, {"a": b"1"}, revision="dev", parent=first)
    clock.seconds += 1
    on_main = statekit.commit(hub, repository, {"a": b"1"}, parent=first)
    assert not on_main.repeated and on_main.commit.id != on_dev.commit.id
    clock.seconds -= 1
    hub.refs.create_branch(repository, "third", first)
    same = statekit.commit(hub, repository, {"a": b"1"}, revision="third", parent=first)
    assert same.commit == on_dev.commit  # of the same second


def test_an_empty_change_makes_a_commit(hub: Hub, repository: Repository) -> None:
    one = statekit.commit(hub, repository, {"a": b"1"}).commit
    two = statekit.commit(hub, repository, {"a": b"1"}, title="again").commit
    three = statekit.commit(hub, repository, title="nothing").commit
    assert (two.parent, three.parent) == (one.id, two.id)
    assert one.tree == two.tree == three.tree
    listing = hub.tree(repository, "main", expand=True)
    assert listing.entries[1].last == one


def test_all_or_nothing(hub: Hub, repository: Repository) -> None:
    statekit.commit(hub, repository, {"a": b"1"})
    before = hub.commit_of(repository, "main")
    for bad in (Delete("gone"), DeleteFolder("gone"), DeleteFolder("a"), Copy("gone", "b")):
        with pytest.raises(EntryNotFound):
            statekit.commit(hub, repository, {"new": b"2"}, bad)
    with pytest.raises(InvalidPath, match="'a/b' needs a folder where 'a' is a file"):
        statekit.commit(hub, repository, {"new": b"2", "a/b": b"3"})
    with pytest.raises(InvalidPath, match="'a' and 'A' in the repository are one file"):
        statekit.commit(hub, repository, {"A": b"2"})
    assert hub.commit_of(repository, "main") == before
    assert statekit.read(hub, repository) == {"a": b"1"}


def test_only_branches_take_commits(hub: Hub, repository: Repository) -> None:
    hub.refs.create_tag(repository, "v1")
    for revision in ("v1", hub.commit_of(repository, "main").id):
        with pytest.raises(InvalidRequest, match="is not a branch and cannot be changed"):
            statekit.commit(hub, repository, {"a": b"1"}, revision=revision)
    with pytest.raises(RevisionNotFound, match="ns/name has no revision 'dev'"):
        statekit.commit(hub, repository, {"a": b"1"}, revision="dev")
    hub.repositories.delete(repository)
    with pytest.raises(RevisionNotFound):
        hub.commit(repository, "main", Request((), "late"), "ann")


@pytest.mark.parametrize("author", ["", " ", "a\nparent 0", "a <b>", "x" * 201])
def test_an_author_is_one_plain_line(hub: Hub, repository: Repository, author: str) -> None:
    with pytest.raises(InvalidRequest, match="cannot be an author"):
        hub.commit(repository, "main", Request((), "t"), author)


@pytest.mark.parametrize("title", ["", "  \n x", "a\x00b", "a\ud800"])
def test_a_title_is_plain_text(hub: Hub, repository: Repository, title: str) -> None:
    request = Request((), title)
    if title == "  \n x":
        assert hub.commit(repository, "main", request, "ann").commit.title == "x"
    else:
        with pytest.raises(InvalidRequest):
            hub.commit(repository, "main", request, "ann")


# --- reading


def test_files_are_found_with_their_commit(hub: Hub, repository: Repository) -> None:
    made = statekit.commit(hub, repository, {"d/a": b"1"}).commit
    found = hub.file(repository, made.id[:7], "d/a")
    assert (found.commit, found.file.size) == (made, 1)
    assert found.file.oid == "56a6051ca2b02b04ef92d5150c9ef600403cb1de"  # git hash-object
    for path in ("d", "d/b", "d/a/b", "", "/d/a", "d//a", "../d/a", "d/a\ud800"):
        with pytest.raises(EntryNotFound) as caught:
            hub.file(repository, "main", path)
        assert caught.value.commit == made.id


def test_listings(hub: Hub, repository: Repository) -> None:
    statekit.commit(hub, repository, {"d/a": b"1", "d/e/b": b"22", "f": b"3"})
    flat = hub.tree(repository, "main")
    assert [entry.path for entry in flat.entries] == [".gitattributes", "d", "f"]
    folder = flat.entries[1].node
    assert isinstance(folder, Folder) and (folder.files, folder.size) == (2, 3)
    inner = hub.tree(repository, "main", "d/", recursive=True)
    assert [entry.path for entry in inner.entries] == ["d/a", "d/e", "d/e/b"]
    page = hub.tree(repository, "main", "d", recursive=True, limit=2)
    assert page.after == "d/e"
    rest = hub.tree(repository, page.commit.id, "d", recursive=True, limit=2, after=page.after)
    assert [entry.path for entry in rest.entries] == ["d/e/b"] and rest.after is None
    for wrong in ("f", "gone", "d/../d"):
        with pytest.raises(EntryNotFound):
            hub.tree(repository, "main", wrong)
    with pytest.raises(InvalidRequest, match="a page of 0"):
        hub.tree(repository, "main", limit=0)


def test_paths_leave_out_what_is_not_there(hub: Hub, repository: Repository) -> None:
    statekit.commit(hub, repository, {"d/a": b"1"})
    asked = ["d/a", "d", "gone", "d/", "d/a/x", "", "\ud800"]
    listing = hub.paths(repository, "main", asked, expand=True)
    assert [entry.path for entry in listing.entries] == ["d/a", "d"]
    assert all(entry.last == listing.commit for entry in listing.entries)


def test_the_last_commit_of_each_entry(hub: Hub, repository: Repository) -> None:
    one = statekit.commit(hub, repository, {"d/a": b"1", "d/b": b"1", "c": b"1"}).commit
    two = statekit.commit(hub, repository, {"d/b": b"2"}).commit
    hub.refs.create_branch(repository, "dev", one.id)
    side = statekit.commit(hub, repository, {"c": b"2"}, revision="dev").commit
    three = statekit.commit(hub, repository, None, gone=["d/b"]).commit

    def last(revision: str) -> dict[str, Any]:
        listing = hub.tree(repository, revision, recursive=True, expand=True)
        return {entry.path: entry.last for entry in listing.entries[1:]}

    assert last("main") == {"c": one, "d": three, "d/a": one}
    assert last(two.id) == {"c": one, "d": two, "d/a": one, "d/b": two}
    assert last("dev") == {"c": side, "d": one, "d/a": one, "d/b": one}


def test_the_log_comes_in_pages(hub: Hub, repository: Repository) -> None:
    made = [statekit.commit(hub, repository, {"a": b"%d" % n}).commit.id for n in range(6)]
    found: list[str] = []
    after = None
    while True:
        page = hub.log(repository, "main", limit=3, after=after)
        found += [each.id for each in page.commits]
        after = page.after
        if after is None:
            break
    assert found[:6] == made[::-1] and len(found) == page.total == 7
    with pytest.raises(RevisionNotFound, match="does not belong to this history"):
        hub.log(repository, made[2], after=made[4])


# --- squashing


def test_squash_leaves_one_commit_and_forgets_the_others(
    hub: Hub, repository: Repository, clock: statekit.Clock
) -> None:
    old = statekit.commit(hub, repository, {"a": b"old", "b": b"1"}).commit
    statekit.commit(hub, repository, {"a": b"new"})
    hub.refs.create_branch(repository, "dev", old.id)
    made = hub.squash(repository, "main", "All of it", "ann")
    assert made == hub.squash(repository, "main", "All of it", "ann")
    assert (made.parent, made.depth, hub.log(repository, "main").total) == (None, 1, 1)
    assert statekit.read(hub, repository) == {"a": b"new", "b": b"1"}
    assert statekit.read(hub, repository, "dev") == {"a": b"old", "b": b"1"}
    assert {e.last for e in hub.tree(repository, "main", expand=True).entries} == {made}
    hub.refs.delete_branch(repository, "dev")
    clock.seconds += 1
    hub.squash(repository, "main", "Once more", "ann")
    with pytest.raises(RevisionNotFound):
        hub.commit_of(repository, old.id)
    assert statekit.read(hub, repository) == {"a": b"new", "b": b"1"}
    assert hub.contents.used(repository) == sum(
        entry.node.size for entry in hub.tree(repository, "main").entries
    )
    with pytest.raises(InvalidRequest, match="is not a branch"):
        hub.refs.create_tag(repository, "v1")
        hub.squash(repository, "v1", "t", "ann")


# --- limits


@pytest.mark.parametrize(
    ("limits", "files", "said"),
    [
        ({"operations": 2}, 3, "operations in one commit: 3, and this hub takes at most 2"),
        ({"files": 3}, 3, "files in ns/name: 4, and this hub takes at most 3"),
        ({"regular_size": 4}, 1, "bytes in 'f0': 5, and this hub takes at most 4"),
        ({"title": 5}, 1, "characters in the title: 6"),
    ],
)
def test_limits_are_named(store: Store, limits: dict[str, int], files: int, said: str) -> None:
    with Hub(store) as hub:
        repository = hub.create(statekit.ID)
    with Hub(store, Limits(**limits)) as hub:
        contents = {f"f{n}": b"%05d" % n for n in range(files)}
        with pytest.raises(TooLarge, match=said) as caught:
            statekit.commit(hub, repository, contents)
        assert caught.value.remedy and caught.value.status == 413
        assert statekit.read(hub, repository) == {}


def test_sizes_of_files_and_repositories_are_limited(store: Store) -> None:
    with Hub(store, Limits(file_size=2000, repository_size=4000)) as hub:
        repository = hub.create(statekit.ID)
        with pytest.raises(TooLarge, match=r"bytes of sha256:.*: 2001, and this hub takes at most"):
            hub.contents.put_bytes(repository, bytes(2001))
        hub.contents.put_bytes(repository, bytes(1500))
        hub.contents.put_bytes(repository, bytes(1500))  # the same: counted once
        with pytest.raises(TooLarge, match="bytes in ns/name: 4119, and this hub takes at most"):
            hub.contents.put_bytes(repository, bytes(1100))
        with pytest.raises(TooLarge, match="delete what is not needed"):
            hub.contents.check_room(repository, 1100)
        hub.contents.check_room(repository, 900)
        assert hub.repositories.again(repository).stored == 3019


@pytest.mark.parametrize("depth", [32, 33])
def test_depth_of_paths_is_limited(hub: Hub, repository: Repository, depth: int) -> None:
    path = "/".join("d" * depth)
    if depth == 32:
        statekit.commit(hub, repository, {path: b"1"})
        assert list(statekit.read(hub, repository)) == [path]
        return
    with pytest.raises(InvalidPath, match="is 33 folders deep; at most 32 are allowed"):
        statekit.commit(hub, repository, {path: b"1"})
    statekit.commit(hub, repository, {"/".join("d" * 20): b"1"})
    with pytest.raises(InvalidPath, match="folders deep"):
        statekit.commit(hub, repository, None, Copy("d", "/".join("e" * 20)))
