"""The store's collector and what the hub needs."""

from __future__ import annotations

import os
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import statekit

from adapterhub.errors import IntegrityError
from adapterhub.hub.state.contents import WEEK
from adapterhub.hub.state.state import Hub
from adapterhub.store import GcReport, Store


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with Store(tmp_path / "home") as made:
        yield made


def age(store: Store) -> None:
    for path in (store.home / "blobs").rglob("*"):
        if path.is_file():
            os.utime(path, (time.time() - 10_000,) * 2)


def collect(store: Store) -> GcReport:
    age(store)
    return store.gc(grace_seconds=5000)


def count(store: Store) -> int:
    return sum(path.is_file() for path in (store.home / "blobs").rglob("*"))


@pytest.mark.parametrize("is_open", [True, False])
def test_what_commits_need_stays(store: Store, is_open: bool) -> None:
    hub = Hub(store)
    repository = hub.create(statekit.ID)
    statekit.commit(hub, repository, {"a": b"old"})
    statekit.commit(hub, repository, {"a": b"new"})
    waiting = hub.contents.put_bytes(repository, b"in no commit yet").digest
    orphan, _ = store.put_blob_bytes(b"orphan")
    if not is_open:
        hub.close()
        assert not (store.home / "hub.db-wal").exists()
    report = collect(store)
    assert (report.blobs, report.blobs_kept) == (1, 4)
    assert not store.has_blob(orphan) and store.has_blob(waiting)
    hub.close()
    with Hub(store) as hub:
        assert statekit.read(hub, repository) == {"a": b"new"}
        first = hub.log(repository, "main").commits[1]
        assert statekit.read(hub, repository, first.id) == {"a": b"old"}


def test_what_was_delivered_and_left_alone_goes_after_a_week(store: Store) -> None:
    with Hub(store, now=lambda: time.time() - WEEK - 5) as hub:
        repository = hub.create(statekit.ID)
        digest = hub.contents.put_bytes(repository, b"left alone").digest
        statekit.commit(hub, repository, {"a": b"1"})
        assert collect(store).blobs == 1
        assert not store.has_blob(digest) and hub.contents.find(repository, digest) is None
        assert statekit.read(hub, repository) == {"a": b"1"}


def test_a_deleted_repository_frees_what_only_it_had(store: Store) -> None:
    with Hub(store) as hub:
        gone, other = hub.create(statekit.ID), hub.create(statekit.other("a/b"))
        statekit.commit(hub, gone, {"a": b"shared", "b": b"alone"})
        statekit.commit(hub, other, {"a": b"shared"})
        hub.repositories.delete(gone)
        assert store.gc(grace_seconds=5000).blobs == 0  # the usual grace
        assert collect(store).blobs == 1
        assert statekit.read(hub, other) == {"a": b"shared"}


def test_a_squash_frees_the_past_a_week_later(store: Store) -> None:
    with Hub(store, now=lambda: time.time() - WEEK - 5) as hub:
        repository = hub.create(statekit.ID)
        statekit.commit(hub, repository, {"a": b"old", "b": b"kept"})
        statekit.commit(hub, repository, {"a": b"new"})
        hub.squash(repository, "main", "all", "ann")
        assert collect(store).blobs == 1
        assert statekit.read(hub, repository) == {"a": b"new", "b": b"kept"}


def test_without_a_hub_nothing_changes(store: Store) -> None:
    store.put_blob_bytes(b"orphan")
    assert collect(store).blobs == 1
    (store.home / "hub.db").touch()  # made, and killed before the first table
    store.put_blob_bytes(b"orphan")
    assert collect(store).blobs == 1
    assert (store.home / "hub.db").stat().st_size == 0


def _junk(path: Path) -> None:
    path.write_bytes(b"junk" * 1000)


def _cut(path: Path) -> None:
    os.truncate(path, 5000)


def _another(path: Path) -> None:
    path.unlink()
    with sqlite3.connect(path) as connection:
        connection.execute("CREATE TABLE t (x)")
    connection.close()


def _wrong_digest(path: Path) -> None:
    with sqlite3.connect(path) as connection:
        connection.execute("UPDATE contents SET digest = '../../etc' WHERE size = 1")
    connection.close()


def _dangling(path: Path) -> None:
    path.unlink()
    path.symlink_to("nowhere")


def _directory(path: Path) -> None:
    path.unlink()
    path.mkdir()


@pytest.mark.parametrize("spoil", [_junk, _cut, _another, _wrong_digest, _dangling, _directory])
@pytest.mark.parametrize("dry_run", [True, False])
def test_a_hub_that_cannot_be_read_stops_it(store: Store, spoil: object, dry_run: bool) -> None:
    assert callable(spoil)
    with Hub(store) as hub:
        statekit.commit(hub, hub.create(statekit.ID), {"a": b"1"})
    store.put_blob_bytes(b"orphan")
    age(store)
    spoil(store.home / "hub.db")
    before = count(store)
    with pytest.raises(IntegrityError, match=r"nothing was collected.*hub\.db") as caught:
        store.gc(grace_seconds=5000, dry_run=dry_run)
    assert caught.value.remedy and count(store) == before == 3


def test_collecting_loads_nothing_of_the_hub(store: Store) -> None:
    Hub(store).close()
    code = (
        "import sys; from adapterhub.store import Store\n"
        "Store(sys.argv[1]).gc(); print([m for m in sys.modules if 'adapterhub.hub' in m])"
    )
    words = [sys.executable, "-c", code, str(store.home)]
    assert subprocess.run(words, capture_output=True, check=True).stdout == b"[]\n"


def test_collecting_while_others_commit(store: Store) -> None:
    import threading

    with Hub(store) as hub:
        repository = hub.create(statekit.ID)
        enough = threading.Event()
        done: list[int] = []

        def work() -> None:
            while not enough.is_set():
                number = len(done)
                statekit.commit(hub, repository, {f"f{number}": b"%d" % number})
                done.append(number)

        thread = threading.Thread(target=work)
        thread.start()
        while len(done) < 3:
            store.gc(grace_seconds=0)
        enough.set()
        thread.join()
        store.gc(grace_seconds=0)
        assert statekit.read(hub, repository) == {f"f{n}": b"%d" % n for n in done}
