"""An ADAPTER, found and read."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from adapterhub import formats
from adapterhub.adapter import Adapter, Reading
from adapterhub.base import TOKENIZER_FILES
from adapterhub.errors import AdapterHubError, UnknownFormat


@dataclass(frozen=True)
class Loaded:
    """An ADAPTER once it is found: `digest` and `manifest` are None for a path."""

    name: str
    adapter: Adapter
    path: Path
    digest: str | None = None
    manifest: Mapping[str, Any] | None = None

    @property
    def tokenizer(self) -> Mapping[str, Path]:
        """The tokenizer's files that lie beside the weights, by their names."""
        directory = self.path if self.path.is_dir() else self.path.parent
        names = [name for name in TOKENIZER_FILES if (directory / name).is_file()]
        return {name: directory / name for name in names}


def read(path: Path, allow_pickle: bool) -> Reading:
    """As `formats.read`, but a model's checkpoint is called what it is."""
    try:
        return formats.read(path, allow_pickle=allow_pickle)
    except UnknownFormat as error:
        if not (path / "config.json").is_file():
            raise
        raise UnknownFormat(
            f"{path} holds a model, not an adapter",
            remedy=f"adapterhub base add {path} registers it as a base",
        ) from error


@contextmanager
def said_of(path: Path) -> Iterator[None]:
    """Errors say which adapter they mean: it may be one of a dozen."""
    try:
        yield
    except AdapterHubError as error:
        if str(path) in error.message:
            raise
        message = f"{path}: {error.message}"
        raise type(error)(message, remedy=error.remedy, details=error.details) from error


def overlaid(adapter: Adapter, manifest: Mapping[str, Any]) -> Adapter:
    """The adapter with what the registry knows better than its files: labels and base."""
    base = replace(
        adapter.base, name=manifest["base"]["name"], revision=manifest["base"]["revision"]
    )
    return replace(adapter, labels=tuple(manifest["labels"]), base=base)
