"""hub.db itself: what happens to it, and what it refuses."""

from __future__ import annotations

import sqlite3
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import statekit

from adapterhub.errors import IntegrityError, OutputError, StoreError
from adapterhub.hub.state.database import Database
from adapterhub.hub.state.repositories import Repository
from adapterhub.hub.state.state import Hub
from adapterhub.store import Store


def test_what_was_written_is_there_again(store: Store) -> None:
    with Hub(store) as hub:
        repository = hub.create(statekit.ID)
        statekit.commit(hub, repository, {"a": b"1"})
    with Hub(store) as hub:
        assert statekit.read(hub, repository) == {"a": b"1"}


@pytest.mark.parametrize(
    ("statement", "said"),
    [
        ("PRAGMA user_version = 99", "has version 99; this adapterhub knows 1"),
        ("PRAGMA application_id = 7", "is a database of another program"),
    ],
)
def test_other_databases_are_refused(store: Store, statement: str, said: str) -> None:
    Hub(store).close()
    path = store.home / "hub.db"
    with sqlite3.connect(path) as connection:
        connection.execute(statement)
    connection.close()
    before = path.read_bytes()
    with pytest.raises(StoreError, match=said):
        Hub(store)
    assert path.read_bytes() == before


def test_damage_is_refused_and_left_alone(store: Store) -> None:
    path = store.home / "hub.db"
    path.write_bytes(b"no database at all" * 100)
    with pytest.raises(IntegrityError, match="is damaged: file is not a database"):
        Hub(store)
    assert path.read_bytes() == b"no database at all" * 100
    path.unlink()
    path.mkdir()
    with pytest.raises(OutputError, match=r"cannot open .*hub\.db: Is a directory"):
        Hub(store)


def test_a_failed_transaction_leaves_nothing(hub: Hub, repository: Repository) -> None:
    database = hub._database
    with pytest.raises(RuntimeError), database.transaction() as connection:
        connection.execute("DELETE FROM refs")
        with database.transaction():
            connection.execute("DELETE FROM repositories")
        raise RuntimeError
    assert hub.repositories.again(repository) == repository
    assert len(hub.refs.list(repository)) == 1
    with database.snapshot(), pytest.raises(StoreError, match="within a snapshot"):  # noqa: SIM117
        with database.transaction():
            pass


def test_a_snapshot_is_of_one_moment(hub: Hub, repository: Repository) -> None:
    with hub._database.snapshot():
        before = hub.refs.list(repository)
        thread = threading.Thread(target=lambda: statekit.commit(hub, repository, {"a": b"1"}))
        thread.start()
        thread.join()
        assert hub.refs.list(repository) == before
    assert hub.refs.list(repository) != before


def test_connections_of_ended_threads_are_closed(hub: Hub, repository: Repository) -> None:
    for _ in range(20):
        thread = threading.Thread(target=lambda: hub.repositories.get(statekit.ID))
        thread.start()
        thread.join()
    assert len(hub._database._kept) <= 3


def test_a_full_database_is_named(hub: Hub, repository: Repository) -> None:
    pages = hub._database.rows("PRAGMA page_count")[0][0]
    hub._database.rows(f"PRAGMA max_page_count = {pages}")
    with pytest.raises(OutputError, match="disk full while writing"):
        statekit.commit(hub, repository, {f"{n:0200}": b"1" for n in range(300)})
    hub._database.rows("PRAGMA max_page_count = 1000000")
    assert statekit.read(hub, repository) == {}
    statekit.commit(hub, repository, {"a": b"1"})


def test_many_processes_make_it_at_once(tmp_path: Path) -> None:
    Store(tmp_path / "home").close()
    code = (
        "import sys; from pathlib import Path\n"
        "from adapterhub.hub.state.database import Database\n"
        "Database(Path(sys.argv[1])).close()"
    )
    path = str(tmp_path / "home" / "hub.db")
    started = [subprocess.Popen([sys.executable, "-c", code, path]) for _ in range(8)]
    assert [process.wait() for process in started] == [0] * 8
    database = Database(Path(path))
    assert len(database.rows("SELECT * FROM repositories")) == 0
    database.close()


def test_every_commit_waits_for_the_disk(store: Store) -> None:
    words = [sys.executable, "-c", _ASK, str(store.home / "hub.db")]
    run = subprocess.run(words, capture_output=True, check=True, text=True)
    assert run.stdout.split() == ["2", "wal", "1"]


_ASK = """
import sys; from pathlib import Path
from adapterhub.hub.state.database import Database
database = Database(Path(sys.argv[1]))
for name in ("synchronous", "journal_mode", "foreign_keys"):
    print(database.rows(f"PRAGMA {name}")[0][0])
"""
