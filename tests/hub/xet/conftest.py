from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from adapterhub.hub.xet.xorbs import Space, Xorbs
from adapterhub.store import Store


@pytest.fixture
def xorbs(tmp_path: Path) -> Xorbs:
    return Xorbs(tmp_path / "xet")


@pytest.fixture
def space(xorbs: Xorbs) -> Space:
    return xorbs.space("7")


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Store]:
    """One for all tests of a file, since making one takes longer than most of them."""
    with Store(tmp_path_factory.mktemp("store") / "home") as opened:
        yield opened
