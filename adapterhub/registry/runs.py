"""Directories of runs: trainer checkpoints, several adapters, PEFT's named subfolders."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from adapterhub import formats

MAX_DEPTH = 8


@dataclass(frozen=True)
class Taken:
    """One adapter found below a directory: what it became, or why it was refused."""

    path: str
    name: str
    version: str | None
    status: str  # "added", "unchanged", "refused"
    error: str | None = None

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def find(root: Path) -> Iterator[Path]:
    """Directories below `root` (or itself) that look like adapters, in the order of their names.

    Links to directories are not followed, hidden ones are left aside.
    """
    for directory, below, _ in os.walk(root, followlinks=False):
        below[:] = sorted(name for name in below if not name.startswith("."))
        path = Path(directory)
        if len(path.relative_to(root).parts) >= MAX_DEPTH:
            below[:] = []
        if formats.detect(path) is not None:
            yield path


def name_for(root: Path, path: Path, name: str | None) -> str:
    """A name from the place below `root`: `runs/ner/checkpoint-500` → `ner-checkpoint-500`.

    With `name`, that is what all names start with.
    """
    parts = [name] if name else []
    parts += path.relative_to(root).parts
    joined = "-".join(parts) or root.resolve().name
    spelled = re.sub(r"[^a-z0-9._/-]+", "-", joined.lower())
    return re.sub(r"[._-]*/[._-]*", "/", spelled).strip("._-/") or "adapter"
