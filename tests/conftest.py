"""What all tests share: no network, a home of their own, the corpus where there is one."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

# Before anything imports huggingface_hub, which reads it once.
os.environ["HF_HUB_OFFLINE"] = "1"

REPO = Path(__file__).resolve().parent.parent


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty home of the registry, named by $ADAPTERHUB_HOME."""
    path = tmp_path / "home"
    monkeypatch.setenv("ADAPTERHUB_HOME", str(path))
    return path


@pytest.fixture(scope="session")
def corpus() -> Path:
    """Adapters made by strangers: $ADAPTERHUB_CORPUS, or shared/corpus beside the checkout."""
    path = Path(os.environ.get("ADAPTERHUB_CORPUS") or REPO.parent / "shared" / "corpus")
    if not (path / "adapters" / "INDEX.json").is_file():
        pytest.skip(f"no corpus of adapters in {path}; $ADAPTERHUB_CORPUS names one")
    return path
