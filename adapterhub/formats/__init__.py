"""How adapters are spelled on disk: one file per format, one row per format in `TABLE`."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, cast

from adapterhub.adapter import Adapter, Reading
from adapterhub.errors import NotFound, UnknownFormat

__all__ = ["TABLE", "Format", "Implementation", "detect", "read", "write"]


class Implementation(Protocol):
    """What each file of this room offers."""

    def recognises(self, path: Path) -> bool:
        """Whether the directory or file is of this format. Reads little, raises nothing."""

    def read(self, path: Path, *, allow_pickle: bool) -> Reading:
        """All that can be seen, damage included; raises only where nothing can be read."""

    def write(self, adapter: Adapter, directory: Path) -> None:
        """Write into an existing directory. Raises NotSupported for what it cannot express."""


@dataclass(frozen=True)
class Format:
    name: str
    title: str
    files: str
    file: str

    @property
    def implementation(self) -> Implementation:
        return cast(Implementation, importlib.import_module(f"{__name__}.{self.file}"))


TABLE: Mapping[str, Format] = {
    row.name: row
    for row in (
        Format(
            name="peft",
            title="Hugging Face PEFT",
            files="adapter_config.json + adapter_model.safetensors",
            file="peft",
        ),
    )
}


def detect(path: Path) -> Format | None:
    """The format of a directory or file, or None."""
    return next((row for row in TABLE.values() if row.implementation.recognises(path)), None)


def read(path: Path, *, allow_pickle: bool = False) -> Reading:
    """Read an adapter in whatever format it is. Raises NotFound or UnknownFormat."""
    try:
        if not path.exists():
            raise NotFound(f"{path} does not exist", remedy="check the path")
        found = detect(path)
        if found is None:
            raise UnknownFormat(
                f"{path} is not an adapter of a known format; seen: {_seen(path)}",
                remedy="point at a directory that holds adapter_config.json",
            )
        return found.implementation.read(path, allow_pickle=allow_pickle)
    except OSError as error:  # a name that is too long, a directory without permission
        raise NotFound(
            f"{str(path)[:200]} cannot be read: {error.strerror}",
            remedy="check the path and its permissions",
        ) from error


def write(adapter: Adapter, directory: Path, *, to: str) -> None:
    """Write `adapter` into `directory`, which must exist, as the format named `to`."""
    if to not in TABLE:
        raise UnknownFormat(
            f"no format is called {to!r}", remedy=f"formats: {', '.join(sorted(TABLE))}"
        )
    TABLE[to].implementation.write(adapter, directory)


def _seen(path: Path) -> str:
    if path.is_file():
        return f"one file, {path.name}"
    names = sorted(entry.name for entry in path.iterdir())
    if not names:
        return "an empty directory"
    more = f" and {len(names) - 8} more" if len(names) > 8 else ""
    return ", ".join(name if name.isprintable() else ascii(name) for name in names[:8]) + more
