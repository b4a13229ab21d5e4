"""Repositories come, move, go and are listed; what was delivered to them."""

from __future__ import annotations

from pathlib import Path

import pytest
import statekit

from adapterhub.errors import IntegrityError
from adapterhub.hub.state.contents import WEEK
from adapterhub.hub.state.errors import Conflict, InvalidRequest, RepoNotFound
from adapterhub.hub.state.model import ANONYMOUS
from adapterhub.hub.state.names import RepoId
from adapterhub.hub.state.repositories import Repository
from adapterhub.hub.state.state import Hub


def test_made_once(hub: Hub, repository: Repository) -> None:
    assert hub.repositories.get(statekit.ID) == repository
    assert (repository.private, repository.gated, repository.info) == (True, "", {})
    for again in ("ns/name", "NS/Name"):
        with pytest.raises(Conflict, match="model ns/name exists already") as caught:
            hub.create(statekit.other(again))
        assert caught.value.status == 409
    hub.create(statekit.other("ns/name", "dataset"))
    with pytest.raises(InvalidRequest, match="gated is 'maybe'"):
        hub.create(statekit.other("ns/x"), gated="maybe")
    assert len(hub.repositories.list(readable=None)) == 1


@pytest.mark.parametrize("id", ["ns/gone", "ns/Name", "name", "ns"])
def test_spelling_decides(hub: Hub, repository: Repository, id: str) -> None:
    with pytest.raises(RepoNotFound, match=f"no model {id}") as caught:
        hub.repositories.get(statekit.other(id))
    assert caught.value.error_code == "RepoNotFound"


def test_a_move_takes_everything_along(hub: Hub, repository: Repository) -> None:
    statekit.commit(hub, repository, {"a": b"1"})
    hub.create(statekit.other("taken/name"))
    for taken in ("taken/name", "Taken/NAME"):
        with pytest.raises(Conflict):
            hub.repositories.move(repository, statekit.other(taken))
    with pytest.raises(InvalidRequest, match="is a model and cannot become a dataset"):
        hub.repositories.move(repository, RepoId("dataset", "ns", "name"))
    moved = hub.repositories.move(repository, statekit.other("else/Name"))
    assert (moved.key, str(moved.id)) == (repository.key, "else/Name")
    assert statekit.read(hub, moved) == statekit.read(hub, repository) == {"a": b"1"}
    assert hub.repositories.move(moved, statekit.other("else/name")).id.name == "name"
    with pytest.raises(RepoNotFound):
        hub.repositories.get(statekit.ID)
    hub.create(statekit.ID)


def test_deleted_is_gone(hub: Hub, repository: Repository) -> None:
    statekit.commit(hub, repository, {"a": b"1"})
    hub.open_pull(repository, "P", "", "ann")
    hub.refs.create_tag(repository, "v1")
    hub.repositories.mark_indexed(repository, "0" * 40, labels=["peft"])
    hub.repositories.delete(repository)
    for late in (
        lambda: hub.repositories.get(statekit.ID),
        lambda: hub.repositories.delete(repository),
        lambda: hub.repositories.configure(repository, private=False),
        lambda: hub.repositories.move(repository, statekit.other("a/b")),
        lambda: hub.contents.put_bytes(repository, b"late"),
        lambda: hub.contents.check_room(repository, 1),
    ):
        with pytest.raises(RepoNotFound):
            late()
    hub.repositories.mark_indexed(repository, "0" * 40, labels=["x"])
    tables = hub._database.rows("SELECT name FROM sqlite_schema WHERE type = 'table'")
    counts = {
        name: hub._database.rows(f"SELECT count(*) FROM {name}")[0][0]
        for (name,) in tables
        if not name.startswith("sqlite_")
    }
    assert set(counts.values()) == {0} and len(counts) == 9
    anew = hub.create(statekit.ID)
    assert anew.key != repository.key and statekit.read(hub, anew) == {}


def test_configure(hub: Hub, repository: Repository) -> None:
    assert not hub.repositories.configure(repository, private=False).private
    now = hub.repositories.configure(repository, gated="auto")
    assert (now.private, now.gated) == (False, "auto")
    with pytest.raises(InvalidRequest):
        hub.repositories.configure(repository, private=True, gated="x")
    assert hub.repositories.again(repository) == now


def test_lists(hub: Hub, clock: statekit.Clock) -> None:
    made = []
    for number, id in enumerate(["a/one", "b/two", "A_/three", "four", "b/Five"]):
        made.append(hub.create(statekit.other(id), private=number % 2 == 1))
        clock.seconds += 1
    hub.create(statekit.other("a/data", "dataset"), private=False)

    def ids(**words: object) -> list[str]:
        return [str(r.id) for r in hub.repositories.list(**words)]  # type: ignore[arg-type]

    assert ids() == ["b/Five", "A_/three", "a/one"]
    assert ids(readable=None) == ["b/Five", "four", "A_/three", "b/two", "a/one"]
    assert ids(readable=("b",)) == ["b/Five", "A_/three", "b/two", "a/one"]
    assert ids(readable=("B",)) == ids()
    assert ids(namespace="b", readable=None) == ["b/Five", "b/two"]
    assert ids(namespace="B", readable=None) == []
    assert ids(search="fIvE") == ["b/Five"] and ids(search="b/f") == ["b/Five"]
    assert ids(search="%") == ids(search="_/") == [] or ids(search="_/") == ["A_/three"]
    statekit.commit(hub, made[0], {"a": b"1"})
    assert ids(readable=None)[0] == "a/one"
    hub.repositories.mark_indexed(made[0], "x", labels=["peft", "lora"], info={"r": 8})
    hub.repositories.mark_indexed(made[4], "x", labels=["peft"])
    assert ids(labels=["peft"]) == ["a/one", "b/Five"] and ids(labels=["peft", "lora"]) == ["a/one"]
    assert hub.repositories.labels(made[0]) == ("lora", "peft")
    assert hub.repositories.again(made[0]).info == {"r": 8}
    assert ids(kind="dataset") == ["a/data"]
    page = hub.repositories.list(readable=None, limit=2)
    rest = hub.repositories.list(readable=None, after=(page[1].updated, page[1].key))
    assert len({r.id for r in (*page, *rest)}) == 5
    with pytest.raises(InvalidRequest, match="a text or number that nothing here has"):
        ids(search="\ud800")
    with pytest.raises(InvalidRequest):
        ids(limit=2**80)


def test_what_is_to_be_indexed(hub: Hub, repository: Repository) -> None:
    head = hub.commit_of(repository, "main").id
    assert [(r.id, commit) for r, commit in hub.repositories.unindexed()] == [(statekit.ID, head)]
    hub.repositories.mark_indexed(repository, head)
    assert hub.repositories.unindexed() == ()
    new = statekit.commit(hub, repository, {"a": b"1"}).commit.id
    assert [commit for _, commit in hub.repositories.unindexed()] == [new]


# --- contents


def test_contents_are_had_once_and_known_by_who_brought_them(
    hub: Hub, repository: Repository, tmp_path: Path
) -> None:
    (tmp_path / "f").write_bytes(b"data")
    content = hub.contents.put_file(repository, tmp_path / "f")
    assert hub.contents.put_bytes(repository, b"data") == content
    other = hub.create(statekit.other("else/where"))
    assert hub.contents.find(other, content.digest) is None
    for wrong in ("", "sha256:x", "\ud800", "sha256:" + "G" * 64):
        assert hub.contents.find(other, wrong) is None
    with pytest.raises(IntegrityError):
        hub.contents.deliver(other, "sha256:" + "0" * 64)
    with pytest.raises(InvalidRequest, match="no file of ns/name is"):
        hub.contents.share(repository, other, content.digest)  # in no commit yet
    both = hub.contents.deliver_all(other, [content.digest, content.digest])
    assert len(both) == 1 and hub.repositories.again(other).stored == 1519 + 4
    assert hub.contents.used(repository) == 1519
    statekit.commit(hub, repository, {"a": b"data", "b": b"data"})
    assert hub.contents.used(repository) == 1523
    found = hub.contents.find(repository, content.digest)
    assert found is not None and found.committed
    assert found.oid == "6320cd248dd8aeaab759d5871f8781b5c0505172"  # git hash-object


def test_what_nobody_committed_is_forgotten_after_a_week(
    hub: Hub, repository: Repository, clock: statekit.Clock
) -> None:
    old = hub.contents.put_bytes(repository, b"old").digest
    kept = hub.contents.put_bytes(repository, b"kept").digest
    statekit.commit(hub, repository, {"k": b"kept"})
    clock.seconds += WEEK
    hub.contents.put_bytes(repository, b"new")
    assert hub.contents.find(repository, old) is None
    assert hub.contents.find(repository, kept) is not None
    assert hub.repositories.again(repository).stored == 1519 + 4 + 3
    hub.contents.put_bytes(repository, b"old")
    assert hub.contents.find(repository, old) is not None


def test_damaged_bytes_are_not_committed(hub: Hub, repository: Repository) -> None:
    digest = hub.contents.put_bytes(repository, b"right").digest
    path = hub.store.blob_path(digest)
    path.chmod(0o644)
    path.write_bytes(b"wrong")
    request = statekit.Request((statekit.Add("a", digest),), "t")
    with pytest.raises(IntegrityError, match=f"blob {digest} is damaged"):
        hub.commit(repository, "main", request, "ann")
    assert statekit.read(hub, repository) == {}


def test_what_may_not_be_seen_is_not_read(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else an answer that takes longer would tell that there is something."""
    hub.create(statekit.other("ns/private"))
    hub.create(statekit.other("ns/public"), private=False)
    monkeypatch.setattr(hub.repositories, "get", lambda id: str(id))
    for id in ("ns/private", "ns/none", "NS/public"):
        with pytest.raises(RepoNotFound, match=f"no model {id}"):
            hub.access.see(ANONYMOUS, statekit.other(id))
    assert hub.access.see(ANONYMOUS, statekit.other("ns/public")) == "ns/public"
