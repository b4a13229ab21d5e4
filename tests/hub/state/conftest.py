from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import hubkit
import pytest

from adapterhub.hub.state.repositories import Repository
from adapterhub.hub.state.state import Hub
from adapterhub.store import Store


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with Store(tmp_path / "home") as made:
        yield made


@pytest.fixture
def clock() -> hubkit.Clock:
    return hubkit.Clock()


@pytest.fixture
def hub(store: Store, clock: hubkit.Clock) -> Iterator[Hub]:
    with Hub(store, now=clock) as made:
        yield made


@pytest.fixture
def repository(hub: Hub) -> Repository:
    return hub.create(hubkit.ID)


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Hub, Repository]]:
    """For tests that leave nothing behind that the others could meet."""
    with Store(tmp_path_factory.mktemp("shared") / "home") as store, Hub(store) as hub:
        yield hub, hub.create(hubkit.ID)
