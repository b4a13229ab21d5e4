"""Directories of runs: trainer checkpoints, several adapters, PEFT's named subfolders."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from adapterhub import formats
from adapterhub.errors import AdapterHubError, NotFound
from adapterhub.registry import hubcache
from adapterhub.registry.adding import Added

_RUN = re.compile(r"checkpoint-\d+")


@dataclass(frozen=True)
class Taken:
    """One adapter found below a directory: what it became, or why it was refused.

    `status`: as in `Added`, or "refused"; then `version` is None and `error` and `remedy` are set.
    """

    path: str
    name: str
    version: str | None
    status: str
    error: str | None = None
    remedy: str | None = None
    notes: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def taken(path: Path, added: Added) -> Taken:
    return Taken(str(path), added.name, added.version, added.status, notes=added.notes)


def refused(path: Path, name: str, error: AdapterHubError) -> Taken:
    return Taken(str(path), name, None, "refused", error.message, error.remedy)


def find(root: Path) -> Iterator[Path]:
    """Adapters below `root` (or itself), in the order of their names: mostly directories.

    Links to directories are not followed, hidden ones and homes of registries are left aside; those
    that cannot be opened are yielded, so that whoever reads them says why.
    """
    closed: list[OSError] = []
    for directory, below, _ in os.walk(root, onerror=closed.append, followlinks=False):
        path = Path(directory)
        if _is_home(path):
            below[:] = []
            continue
        below[:] = sorted(name for name in below if not name.startswith("."))
        yield from formats.members(path)
    yield from (Path(error.filename) for error in closed if error.filename)


def below(root: Path) -> list[Path]:
    """As `find`. Raises NotFound where `root` is no directory or holds no adapter."""
    if not root.is_dir():
        raise NotFound(f"{root} is not a directory", remedy="give a directory of runs")
    found = list(find(root))
    if not found:
        raise NotFound(
            f"there is no adapter below {root}", remedy="adapters have an adapter_config.json"
        )
    return found


def _is_home(path: Path) -> bool:
    return (path / "store.json").is_file() and (path / "manifests").is_dir()


def names(root: Path, found: Sequence[Path], name: str | None) -> Iterator[tuple[Path, str]]:
    """Each path with its name; `name` is what all names start with.

    `runs` holds `ner/checkpoint-500`: `ner-checkpoint-500`. Where `root` is itself a run (it holds
    an adapter, or `checkpoint-500`), its own name comes first.
    """
    below = [_unsuffixed(path).relative_to(root).parts for path in found]
    is_run = any(not parts or _RUN.fullmatch(parts[0]) for parts in below)
    start = name or (root.resolve().name if is_run else "")
    for path, parts in zip(found, below, strict=True):
        yield path, spelled("-".join([*([start] if start else []), *parts]))


def default_name(path: Path) -> str:
    """Of an adapter: its repository's name on the Hub, its directory's, or that of its one file.

    A file may be a link to a blob, whose name says nothing.
    """
    if path.is_file():
        return spelled(path.stem)
    return spelled(hubcache.repository(path.resolve()) or path.resolve().name)


def _unsuffixed(path: Path) -> Path:
    return path.with_suffix("") if path.is_file() else path


def spelled(text: str) -> str:
    """`text` as the rules for names want it; "adapter" where nothing is left of it."""
    name = re.sub(r"[^a-z0-9._/-]+", "-", text.lower())
    return re.sub(r"[._-]*/[._-]*", "/", name).strip("._-/") or "adapter"
