"""What the readers share: checks against the tables, and writing whole files."""

from __future__ import annotations

import os
from pathlib import Path

from adapterhub.adapter import Adapter, BaseClaim, Problem
from adapterhub.errors import OutputError
from adapterhub.formats.peft import looks_like_path
from adapterhub.methods import TABLE as METHODS
from adapterhub.methods import generic
from adapterhub.tensorfile import shown


def method_problems(adapter: Adapter, *, own_tensors: bool = False) -> list[Problem]:
    """What the method's own file finds; fatal where this version does not know the method.

    `own_tensors`: the format has others than those that the method's file knows.
    """
    row = METHODS.get(adapter.method)
    if row is None:
        text = f"the method {adapter.method} is not supported by this version"
        known = f"supported methods: {', '.join(sorted(METHODS))}"
        return [Problem("method", text, known, fatal=True)]
    return (
        generic.foreign_problems(adapter) if own_tensors else row.implementation.problems(adapter)
    )


def base_problems(base: BaseClaim) -> list[Problem]:
    """That the base is not named, is a path, or has no revision."""
    remedy = "give --base when adding"
    if base.name is None:
        return [Problem("no-base", "no base model is named", remedy)]
    if looks_like_path(base.name):
        text = f"the base is a path on somebody's machine: {shown(base.name)}"
        return [Problem("local-base", text, remedy)]
    if base.revision is None:
        text = f"the base {base.name} is not pinned to a revision"
        return [Problem("unpinned-base", text, "give --base DIR when adding: its digest pins it")]
    return []


def unknown_keys(names: list[str], writer: str) -> list[Problem]:
    """Fatal, with the first few names; nothing if there are none."""
    if not names:
        return []
    some = ", ".join(shown(name) for name in names[:5])
    text = f"{len(names)} tensors have names that {writer} does not write: {some}"
    return [Problem("unknown-keys", text, f"re-export with {writer}", fatal=True)]


def write_whole(path: Path, data: bytes) -> None:
    """The whole file or none of it. Raises OutputError."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise OutputError(
            f"{path} cannot be written: {error.strerror}",
            remedy="free some space, or choose a directory that you may write to",
        ) from error
