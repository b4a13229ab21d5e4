from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import transferkit
from transferkit import Place


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    home: Path = tmp_path_factory.mktemp("server") / "home"
    with transferkit.place(home) as place:
        yield place
