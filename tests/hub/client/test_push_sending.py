"""Pushes to a small hub in this process: what arrives there, and what does not."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from minihub import CUT, MiniHub
from pushkit import save_adapter

from adapterhub.hub.client import push
from adapterhub.registry import Registry


@pytest.fixture
def registry(tmp_path: Path) -> Registry:
    return Registry(tmp_path / "home")


def test_first(hub: MiniHub, registry: Registry, tmp_path: Path) -> None:
    registry.add(save_adapter(tmp_path / "a"), name="ner")
    r = push("ner", "me/ner", registry=registry)
    print(r)
    print(hub.repositories["me/ner"].tree()["README.md"].decode())
    print(hub.requests)
    r = push("ner", "me/ner", registry=registry)
    print(r)
    assert 0
