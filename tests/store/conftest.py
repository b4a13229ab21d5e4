from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from adapterhub.store import Store, files


@pytest.fixture(autouse=True)
def _no_hook() -> Iterator[None]:
    yield
    files.HOOK = None


@pytest.fixture
def notes() -> list[str]:
    return []


@pytest.fixture
def store(tmp_path: Path, notes: list[str]) -> Iterator[Store]:
    with Store(tmp_path / "home", on_note=notes.append) as made:
        yield made
