"""Adapters to push, made by what the tests of the registry use, and what a hub then holds."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

sys.path.append(str(Path(__file__).parents[2] / "registry"))

from regkit import lora, save_adapter, save_base, save_tagger

__all__ = ["LICENSED", "front", "lora", "pushable", "save_adapter", "save_base", "save_tagger"]

COMMIT = "0123456789abcdef0123456789abcdef01234567"
LICENSED = "---\nlicense: mit\n---\n\n# About it\n\nA text that somebody wrote.\n"


def pushable(path: Path, readme: str | None = LICENSED, seed: int = 1, **fields: Any) -> Path:
    """A PEFT directory that nothing speaks against."""
    save_adapter(path, lora(seed), **{"revision": COMMIT, **fields})
    if readme is not None:
        (path / "README.md").write_bytes(readme.encode())
    return path


def front(tree: Mapping[str, bytes]) -> dict[str, Any]:
    """The front matter of a tree's README.md, as the Hub reads it."""
    text = tree["README.md"].decode()
    loaded: dict[str, Any] = yaml.safe_load(text.split("---\n")[1])
    return loaded
