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
