from __future__ import annotations

import logging
import os
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest

os.environ["HF_HUB_OFFLINE"] = "1"


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("models")


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
