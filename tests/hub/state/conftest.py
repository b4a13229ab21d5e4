from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from pathlib import Path

import pytest
import statekit

from adapterhub.hub.state.database import Database
from adapterhub.hub.state.repositories import Repository
from adapterhub.hub.state.state import Hub
from adapterhub.store import Store, files


@pytest.fixture(autouse=True, scope="session")
def _no_flushing() -> Iterator[None]:
    """What waits for the disk, which only a power cut could show; not in other processes."""
    connect = Database._connect

    def quick(self: Database) -> sqlite3.Connection:
        connection = connect(self)
        connection.execute("PRAGMA synchronous = OFF")
        return connection

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(files, "fsync_file", lambda fd, path: files.announce("fsync", path))
        patch.setattr(Database, "_connect", quick)
        yield


@pytest.fixture(scope="session")
def a_home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One for all tests, since to make one takes longer than most of them."""
    return tmp_path_factory.mktemp("shared") / "home"


@pytest.fixture
def store(a_home: Path) -> Iterator[Store]:
    """Without a hub; with whatever blobs the tests before have left."""
    with Store(a_home) as made:
        yield made
    for path in a_home.glob("hub.db*"):
        path.rmdir() if path.is_dir() else path.unlink()


@pytest.fixture
def clock() -> statekit.Clock:
    return statekit.Clock()


@pytest.fixture
def hub(store: Store, clock: statekit.Clock) -> Iterator[Hub]:
    with Hub(store, now=clock) as made:
        yield made


@pytest.fixture
def repository(hub: Hub) -> Repository:
    return hub.create(statekit.ID)


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Hub, Repository]]:
    """For tests that leave nothing behind that the others could meet."""
    with Store(tmp_path_factory.mktemp("shared") / "home") as store, Hub(store) as hub:
        yield hub, hub.create(statekit.ID)
