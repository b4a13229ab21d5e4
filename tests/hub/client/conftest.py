from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

# Also run from tests/cli, which add this directory.
sys.path.append(str(Path(__file__).parent))

from minihub import MiniHub

from adapterhub.registry import Registry

TOKEN = "hf_aVeryPrivateTokenOfMine1234567890"


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[MiniHub]:
    """A small hub that this process talks to, signed in, by LFS, without waiting between tries."""
    import huggingface_hub.utils._http as http
    from huggingface_hub import constants

    with MiniHub().serving() as served:
        for name, value in {
            "HF_HUB_OFFLINE": False,
            "HF_HUB_DISABLE_XET": True,
            "ENDPOINT": served.url,
            "HUGGINGFACE_CO_URL_TEMPLATE": served.url + "/{repo_id}/resolve/{revision}/{filename}",
            "HF_HUB_CACHE": str(tmp_path / "hf"),
        }.items():
            monkeypatch.setattr(constants, name, value)
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        monkeypatch.setattr(http, "time", SimpleNamespace(sleep=lambda seconds: None))
        yield served


@pytest.fixture
def registry(tmp_path: Path) -> Iterator[Registry]:
    with Registry(tmp_path / "home") as opened:
        yield opened
