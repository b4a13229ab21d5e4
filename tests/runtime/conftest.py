from __future__ import annotations

import logging
import os
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from adapterhub import api
from adapterhub.registry import Registry

os.environ["HF_HUB_OFFLINE"] = "1"


@pytest.fixture(autouse=True, scope="module")
def _without_cards(without_cards: None) -> None:
    pass


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("models")


@pytest.fixture
def registry(home: Path) -> Iterator[Registry]:
    with api.open(home) as opened:
        yield opened


@pytest.fixture(scope="module")
def _bench(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    from living import Bench

    with api.open(tmp_path_factory.mktemp("bench-home")) as opened:
        yield Bench(tmp_path_factory.mktemp("bench"), opened)


@pytest.fixture
def bench(_bench: Any) -> Iterator[Any]:
    """See `living.Bench`; whatever a test does to its model has to be undone at the end."""
    from living import bits

    yield _bench
    assert bits(_bench.model) == _bench.bare, "a test left the model changed"


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    """PEFT calls into transformers in ways that are deprecated there."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", category=FutureWarning, module="transformers|peft")
        yield


@pytest.fixture
def said(caplog: pytest.LogCaptureFixture) -> Iterator[pytest.LogCaptureFixture]:
    """What transformers logs; its own logger does not propagate by itself."""
    logger = logging.getLogger("transformers")
    before = logger.propagate
    logger.propagate = True
    with caplog.at_level(logging.WARNING):
        yield caplog
    logger.propagate = before
