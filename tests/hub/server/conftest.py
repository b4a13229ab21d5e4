from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parent))
sys.path.append(str(Path(__file__).parents[2] / "registry"))

import transferkit
from huggingface_hub import HfApi, constants
from serverkit import Served, running
from transferkit import Place

Client = Callable[..., HfApi]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    home: Path = tmp_path_factory.mktemp("server") / "home"
    with transferkit.place(home) as place:
        yield place


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """One hub for a file of tests: each makes repositories of its own."""
    with running(tmp_path_factory.mktemp("server") / "home") as found:
        yield found


@pytest.fixture
def client(served: Served, monkeypatch: pytest.MonkeyPatch) -> Client:
    """`client(role, *namespaces)`: a Hugging Face client that is signed in to `served`."""
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "ENDPOINT", served.url)
    template = served.url + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)

    def make(role: str | None = "write", *namespaces: str) -> HfApi:
        token = served.secret(role, *namespaces) if role else False
        return HfApi(endpoint=served.url, token=token)

    return make
