"""Pull requests: opened, changed, merged, or in conflict."""

from __future__ import annotations

import pytest
import statekit

from adapterhub.errors import NotFound
from adapterhub.hub.state.errors import Conflict, InvalidRequest, RevisionNotFound, Stale
from adapterhub.hub.state.operations import DeleteFolder
from adapterhub.hub.state.repositories import Repository
from adapterhub.hub.state.state import Hub


def test_a_draft_takes_commits_and_is_merged_as_one(hub: Hub, repository: Repository) -> None:
    base = statekit.commit(hub, repository, {"a": b"1", "d/b": b"1"}).commit
    pull = hub.open_pull(repository, "Mine", "look", "bob")
    assert (pull.number, pull.status, pull.base, pull.head) == (1, "draft", base.id, base.id)
    one = statekit.commit(hub, repository, {"a": b"2"}, revision="refs/pr/1", title="One")
    two = statekit.commit(
        hub, repository, {"new": b"3"}, DeleteFolder("d"), revision=pull.ref, title="Two"
    )
    assert (one.pull, one.ref, two.pull) == (1, "refs/pr/1", 1)
    assert statekit.read(hub, repository) == {"a": b"1", "d/b": b"1"}
    onto = statekit.commit(hub, repository, {"other": b"4"}, title="meanwhile").commit
    assert hub.pulls.set_status(repository, 1, "open").status == "open"
    assert hub.pulls.conflicts(repository, 1) == ()
    made = hub.merge(repository, 1, "ann")
    assert (made.parent, made.title, made.author) == (onto.id, "Mine (#1)", "ann")
    assert made.message == f"- One ({one.commit.id})\n- Two ({two.commit.id})"
    assert statekit.read(hub, repository) == {"a": b"2", "new": b"3", "other": b"4"}
    assert hub.merge(repository, 1, "ann") == made  # asked again
    pull = hub.pulls.get(repository, 1)
    assert (pull.status, pull.merged, pull.head) == ("merged", made.id, two.commit.id)
    assert hub.log(repository, "main").total == 4
    for refused in (
        lambda: hub.pulls.set_status(repository, 1, "open"),
        lambda: statekit.commit(hub, repository, {"x": b""}, revision="refs/pr/1", title="late"),
    ):
        with pytest.raises(InvalidRequest, match="pull request 1 of ns/name is merged"):
            refused()


def test_a_commit_may_bring_its_pull_request(hub: Hub, repository: Repository) -> None:
    first = hub.commit_of(repository, "main").id
    second = statekit.commit(hub, repository, {"a": b"1"}).commit.id
    made = statekit.commit(hub, repository, {"a": b"2"}, title="Mine", create_pr=True)
    again = statekit.commit(hub, repository, {"a": b"2"}, title="Mine", create_pr=True)
    assert again.repeated and (again.commit, again.pull) == (made.commit, 1)
    pull = hub.pulls.get(repository, 1)
    assert (pull.title, pull.status, pull.base, pull.author) == ("Mine", "open", second, "ann")
    old = statekit.commit(hub, repository, {"b": b"1"}, create_pr=True, parent=first)
    assert hub.pulls.get(repository, 2).base == old.commit.parent == first
    assert statekit.read(hub, repository) == {"a": b"1"}
    with pytest.raises(Stale, match="is no commit of that branch"):
        statekit.commit(hub, repository, {"b": b"1"}, create_pr=True, parent=made.commit.id)
    with pytest.raises(InvalidRequest, match="a pull request is for a branch, not for refs/pr/1"):
        statekit.commit(hub, repository, {"b": b"1"}, create_pr=True, revision="refs/pr/1")
    assert hub.pulls.count(repository) == 2
    hub.merge(repository, 2, "ann")
    assert statekit.read(hub, repository) == {"a": b"1", "b": b"1"}


@pytest.mark.parametrize(
    ("mine", "theirs", "what"),
    [
        ({"a": b"2"}, {"a": b"3"}, ("a",)),
        ({"a": None}, {"a": b"3"}, ("a",)),
        ({"new": b"1"}, {"new": b"2"}, ("new",)),
        ({"a": b"2"}, {"a": b"2"}, ()),
        ({"a": None}, {"a": None}, ()),
        ({"a": b"2"}, {"b": b"2"}, ()),
        ({"a": None, "a/x": b"1"}, {"b": b"2"}, ()),
        ({"n": b"1"}, {"n/x": b"1"}, ("'n' is a folder and cannot become a file",)),
        ({"n/x": b"1"}, {"n": b"1"}, ("'n/x' needs a folder where 'n' is a file",)),
        ({"n": b"1"}, {"N": b"1"}, ("'n' and 'N' in the repository are one file",)),
    ],
)
def test_both_sides_are_kept_or_the_clash_is_named(
    hub: Hub,
    repository: Repository,
    mine: dict[str, bytes | None],
    theirs: dict[str, bytes | None],
    what: tuple[str, ...],
) -> None:
    start = {"a": b"1", "b": b"1"}
    statekit.commit(hub, repository, start)
    pull = hub.open_pull(repository, "Mine", "", "bob")
    for revision, side in ((pull.ref, mine), ("main", theirs)):
        files = {path: data for path, data in side.items() if data is not None}
        gone = [path for path, data in side.items() if data is None]
        statekit.commit(hub, repository, files, gone=gone, revision=revision)
    before = hub.commit_of(repository, "main")
    found = hub.pulls.conflicts(repository, 1)
    assert len(found) == len(what)
    assert all(each.startswith(said) for each, said in zip(found, what, strict=True))
    if what:
        with pytest.raises(Conflict, match="pull request 1 of ns/name conflicts with main"):
            hub.merge(repository, 1, "ann")
        assert hub.commit_of(repository, "main") == before
        return
    hub.merge(repository, 1, "ann")
    expected = {path: data for path, data in (start | theirs | mine).items() if data is not None}
    assert statekit.read(hub, repository) == expected


def test_lists_and_changes(hub: Hub, repository: Repository) -> None:
    for number in range(1, 6):
        hub.open_pull(repository, f"P{number}", "", "bob" if number % 2 else "eve")
    hub.pulls.set_status(repository, 2, "closed")
    hub.pulls.set_status(repository, 3, "open")

    def numbers(**words: object) -> list[int]:
        return [pull.number for pull in hub.pulls.list(repository, **words)]  # type: ignore[arg-type]

    assert numbers(limit=2) == [5, 4] and numbers(limit=2, offset=4) == [1]
    assert numbers(status="closed") == [2] and numbers(status="live", author="bob") == [5, 3, 1]
    assert hub.pulls.count(repository, status="draft", author="eve") == 1
    assert hub.pulls.rename(repository, 1, " New \n x").title == "New"
    for title in ("", "a\x07"):
        with pytest.raises(InvalidRequest):
            hub.pulls.rename(repository, 1, title)
    with pytest.raises(InvalidRequest, match="'merged' is no status"):
        hub.pulls.set_status(repository, 1, "merged")
    for number in (0, -1, 6, 2**70):
        with pytest.raises(NotFound, match=f"has no pull request {number}"):
            hub.pulls.get(repository, number)
    with pytest.raises(InvalidRequest, match="is closed"):
        hub.merge(repository, 2, "ann")
    with pytest.raises(RevisionNotFound):
        hub.open_pull(repository, "P", "", "bob", target="gone")


def test_a_pull_request_outlives_a_squash_of_its_target(hub: Hub, repository: Repository) -> None:
    statekit.commit(hub, repository, {"a": b"1"})
    statekit.commit(hub, repository, {"b": b"1"}, create_pr=True)
    hub.squash(repository, "main", "all", "ann")
    hub.merge(repository, 1, "ann")
    assert statekit.read(hub, repository) == {"a": b"1", "b": b"1"}
    assert [each.title for each in hub.log(repository, "main").commits] == ["change (#1)", "all"]
