from __future__ import annotations

import sys
from pathlib import Path

import pytest
from building import LLAMA, llama, lora, save_adapter, save_base

# The oracle of the merge formula is shared with the kernels' tests.
sys.path.append(str(Path(__file__).parents[1] / "kernels"))


@pytest.fixture(autouse=True, scope="module")
def _without_cards(without_cards: None) -> None:
    pass


@pytest.fixture
def base(tmp_path: Path) -> Path:
    return save_base(tmp_path / "base", llama(), LLAMA, shards=2)


@pytest.fixture
def adapter(tmp_path: Path) -> Path:
    return save_adapter(tmp_path / "adapter", lora())
