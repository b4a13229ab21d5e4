from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parent))

from minihub import MiniHub, talking_to

from adapterhub.registry import Registry


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[MiniHub]:
    """A small hub that this process talks to, signed in, by LFS, without waiting between tries."""
    with MiniHub().serving() as served:
        talking_to(served, monkeypatch, tmp_path)
        yield served


@pytest.fixture
def registry(tmp_path: Path) -> Iterator[Registry]:
    with Registry(tmp_path / "home") as opened:
        yield opened
