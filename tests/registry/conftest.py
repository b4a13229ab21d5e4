from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import regkit

from adapterhub import api
from adapterhub.registry import Registry
from adapterhub.store import files


@pytest.fixture(autouse=True)
def _no_hook() -> Iterator[None]:
    yield
    files.HOOK = None


@pytest.fixture
def registry(home: Path) -> Iterator[Registry]:
    with api.open(home) as opened:
        yield opened


@pytest.fixture
def base(tmp_path: Path) -> Path:
    return regkit.save_base(tmp_path / "models" / "minibert")


@pytest.fixture
def adapter(tmp_path: Path) -> Path:
    return regkit.save_adapter(tmp_path / "runs" / "first")
