"""What a revision means, and how branches and tags come and go."""

from __future__ import annotations

import pytest
import statekit

from adapterhub.hub.state.errors import (
    Conflict,
    InvalidRequest,
    RevisionNotFound,
    TooLarge,
)
from adapterhub.hub.state.limits import Limits
from adapterhub.hub.state.repositories import Repository
from adapterhub.hub.state.state import Hub
from adapterhub.store import Store


def test_a_revision_is_a_name_or_a_commit(hub: Hub, repository: Repository) -> None:
    first = hub.commit_of(repository, "main").id
    second = statekit.commit(hub, repository, {"a": b"1"}).commit.id
    hub.refs.create_branch(repository, "dev/x", first)
    hub.refs.create_tag(repository, "v1", first, "the first")
    pull = hub.open_pull(repository, "Mine", "", "ann")
    for revision, commit in {
        "main": second,
        "refs/heads/main": second,
        "dev/x": first,
        "refs/heads/dev/x": first,
        "v1": first,
        "refs/tags/v1": first,
        pull.ref: second,
        second: second,
        second[:7]: second,
        first[:39]: first,
    }.items():
        assert hub.refs.resolve(repository, revision) == commit
    assert [(ref.name, ref.short, ref.message) for ref in hub.refs.list(repository)] == [
        ("refs/heads/dev/x", "dev/x", ""),
        ("refs/heads/main", "main", ""),
        ("refs/pr/1", "1", ""),
        ("refs/tags/v1", "v1", "the first"),
    ]


@pytest.mark.parametrize(
    "revision",
    [
        "",
        "gone",
        "MAIN",
        "refs/heads/",
        "refs/heads/gone",
        "refs/tags/main",
        "refs/pr/9",
        "refs/pr/x",
        "0" * 40,
        "0000000",
        "heads/main",
        "main^",
        "main\x00",
        "main ",
        "refs%2Fheads%2Fmain",
        "\ud800",
        "x" * 10_000,
        "%",
        "ma_n",
    ],
)
def test_other_revisions_are_not_found(shared: tuple[Hub, Repository], revision: str) -> None:
    hub, repository = shared
    with pytest.raises(RevisionNotFound, match="ns/name has no revision") as caught:
        hub.commit_of(repository, revision)
    assert caught.value.error_code == "RevisionNotFound"
    assert len(caught.value.message) < 200 and caught.value.message.isprintable()


def test_six_digits_are_too_few_and_two_commits_too_many(
    hub: Hub, repository: Repository, monkeypatch: pytest.MonkeyPatch
) -> None:
    id = hub.commit_of(repository, "main").id
    with pytest.raises(RevisionNotFound):
        hub.commit_of(repository, id[:6])
    from adapterhub.hub.state import objects

    ids = iter(["abcdef01" + "0" * 32, "abcdef02" + "0" * 32])
    monkeypatch.setattr(objects, "commit_oid", lambda *values: next(ids))
    statekit.commit(hub, repository, {"a": b"1"})
    statekit.commit(hub, repository, {"a": b"2"})
    assert hub.commit_of(repository, "abcdef01").depth == 2
    with pytest.raises(RevisionNotFound, match="abcdef0 is the beginning of several commits"):
        hub.commit_of(repository, "abcdef0")


def test_another_repositorys_commit_is_not_found(hub: Hub, repository: Repository) -> None:
    id = statekit.commit(hub, repository, {"a": b"1"}).commit.id
    with pytest.raises(RevisionNotFound):
        hub.commit_of(hub.create(statekit.other("else/where")), id)


def test_branches_and_tags_come_and_go(hub: Hub, repository: Repository) -> None:
    hub.refs.create_branch(repository, "dev")
    for again in (hub.refs.create_branch, hub.refs.create_tag):
        with pytest.raises(Conflict, match="ns/name has refs/heads/dev already") as caught:
            again(repository, "dev")
        assert caught.value.status == 409
    hub.refs.create_tag(repository, "v1", "dev")
    with pytest.raises(Conflict, match="ns/name has refs/tags/v1 already"):
        hub.refs.create_branch(repository, "v1")
    with pytest.raises(RevisionNotFound):
        hub.refs.create_branch(repository, "x", "gone")
    hub.refs.delete_branch(repository, "dev")
    hub.refs.delete_tag(repository, "v1")
    with pytest.raises(RevisionNotFound):
        hub.refs.delete_branch(repository, "dev")
    with pytest.raises(RevisionNotFound):
        hub.refs.delete_tag(repository, "main")
    with pytest.raises(InvalidRequest, match="main of ns/name cannot be deleted"):
        hub.refs.delete_branch(repository, "main")


def test_a_branch_goes_its_own_way(hub: Hub, repository: Repository) -> None:
    statekit.commit(hub, repository, {"a": b"1"})
    hub.refs.create_branch(repository, "dev")
    hub.refs.create_tag(repository, "v1")
    statekit.commit(hub, repository, {"a": b"2"}, revision="dev")
    statekit.commit(hub, repository, {"a": b"3"}, revision="refs/heads/main")
    contents = [statekit.read(hub, repository, each)["a"] for each in ("main", "dev", "v1")]
    assert contents == [b"3", b"2", b"1"]


@pytest.mark.parametrize(
    "name",
    [
        "",
        "a b",
        "a..b",
        "-a",
        "/a",
        "a/",
        "a//b",
        ".a",
        "a/.b",
        "a.lock",
        "a.",
        "refs/heads/x",
        "HEAD",
        "@",
        "a@{1}",
        "a~1",
        "a^",
        "a:b",
        "a?",
        "a*",
        "a[",
        "a\\b",
        "a\nb",
        "a\x00",
        "a\u202eb",
        "\ud800",
        "0" * 40,
        "x" * 201,
        None,
        7,
    ],
)
def test_names_that_git_refuses(shared: tuple[Hub, Repository], name: str) -> None:
    hub, repository = shared
    for make in (hub.refs.create_branch, hub.refs.create_tag):
        with pytest.raises(InvalidRequest, match="is not a name of a") as caught:
            make(repository, name)
        assert caught.value.status == 400


@pytest.mark.parametrize("name", ["a", "dev/x", "v1.0-rc_1", "ünï", "a%2Fb", "1/2/3", "pr/1"])
def test_names_that_are_fine(shared: tuple[Hub, Repository], name: str) -> None:
    hub, repository = shared
    first = hub.refs.create_branch(repository, name).target
    assert hub.refs.resolve(repository, name) == first


def test_their_number_is_limited(store: Store) -> None:
    with Hub(store, Limits(refs=2)) as hub:
        repository = hub.create(statekit.ID)
        hub.refs.create_branch(repository, "dev")
        with pytest.raises(TooLarge, match="branches, tags and such in ns/name: 3"):
            hub.refs.create_tag(repository, "v1")
        with pytest.raises(TooLarge):
            statekit.commit(hub, repository, {"a": b"1"}, create_pr=True)
        assert hub.pulls.list(repository) == ()
