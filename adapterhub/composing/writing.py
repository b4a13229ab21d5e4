"""An adapter that was made, with its base and lineage: into a directory, or into the registry."""

from __future__ import annotations

import fcntl
import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from adapterhub import formats
from adapterhub.adapter import Adapter
from adapterhub.errors import InvalidOption, OutputError
from adapterhub.registry import Registry, checkout, manifests
from adapterhub.store import check_name, files

Check = Callable[[], None]
_DEPTH = 100  # directories made on the way


@dataclass(frozen=True)
class Artefact:
    """`lineage`: which operation on which inputs made it; the same on every machine."""

    adapter: Adapter
    base: manifests.BaseRecord
    lineage: Mapping[str, Any]


def check_target(name: str | None, out: str | Path | None) -> None:
    """Raises InvalidOption where not exactly one is given, InvalidName, OutputError."""
    if (name is None) == (out is None):
        raise InvalidOption(
            "give one of name and out: where the result goes",
            remedy="--name NAME for the registry, or --out DIR for a new directory",
        )
    if name is not None:
        check_name(name)
    else:
        check_out(Path(str(out)))


def check_out(out: Path) -> None:
    """Raises OutputError where there is something already, or nothing can be."""
    if out.name in ("", ".."):  # cannot be renamed to
        raise OutputError(f"{str(out)!r:.200} is no new directory", remedy="give it a name")
    try:
        is_there = _is_there(out)
        _is_there(_partial_path(out))  # as long a name must be possible
        is_free = not is_there or (out.is_dir() and not out.is_symlink() and not any(out.iterdir()))
    except (OSError, ValueError) as error:  # too long, below a file, no name at all
        raise OutputError(f"{str(out)!r:.200} cannot be written: {error}"[:500]) from error
    if not is_free:
        raise OutputError(f"{out} is not empty", remedy="choose a new directory")
    _check_parents(out)


def _is_there(path: Path) -> bool:
    """Raises OSError, ValueError for what can never be."""
    try:
        os.lstat(path)
    except FileNotFoundError:
        return False
    return True


def _check_parents(out: Path) -> None:
    """Raises OutputError where the directories on the way cannot be made."""
    parents = out.absolute().parents
    there = next(parent for parent in parents if os.path.lexists(parent))
    if not there.is_dir() or not os.access(there, os.W_OK | os.X_OK):
        why = "is read-only" if there.is_dir() else "is no directory"
        raise OutputError(f"{out} cannot be written: {there} {why}", remedy="choose another place")
    if len(parents) - len(there.parents) > _DEPTH:
        raise OutputError(f"{out} is too deep below {there}", remedy="choose another place")


def deliver(
    made: Artefact,
    name: str | None,
    out: str | Path | None,
    registry: Registry,
    inputs: Sequence[str],
    check: Check,
) -> str | None:
    """Into `out`, or as the new version of `name`, which is returned: `name@sha256:…`.

    `inputs`: what they are called here, for the version's origin; its lineage has their digests.
    `check` raises where what was made must not appear, since an input changed meanwhile: tensors
    that stay whole are read only now.
    """
    if out is not None:
        write(made, Path(out), check)
        return None
    origin = {"operation": made.lineage["operation"], "inputs": list(inputs)}
    with checkout.scratch(registry.store) as directory:
        try:
            write_into(made, directory)
        except OSError as error:
            raise OutputError(
                f"{directory} cannot be written: {error.strerror}",
                remedy=f"make room below {registry.home}: adapterhub gc may",
            ) from error
        check()
        return registry.add(directory, name=str(name), origin=origin).version


def write(made: Artefact, out: Path, check: Check | None = None) -> None:
    """The adapter's files with its manifest as adapterhub.json; all of it appears at once.

    `check` is called before it does.

    Raises OutputError where `out` exists and is not empty, or cannot be written.
    """
    check_out(out)
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with _partial(out) as partial:
            write_into(made, partial)
            if check:
                check()
            files.fsync_path(partial)
            partial.replace(out)
            files.fsync_path(out.parent)
    except OSError as error:
        raise OutputError(f"{out} cannot be written: {error.strerror}") from error


def _partial_path(out: Path) -> Path:
    return out.with_name(f".{out.name}.adapterhub-partial")


@contextmanager
def _partial(out: Path) -> Iterator[Path]:
    """A directory beside `out`, ours alone while it lasts, and gone at the end unless renamed.

    What a killed process left there goes first: the lock is on the directory itself, and ends with
    who holds it. Raises OutputError where another process writes there, OSError.
    """
    partial = _partial_path(out)
    partial.mkdir(exist_ok=True)
    fd = os.open(partial, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        _claim(fd, partial, out)
        try:
            _clear(partial)
            yield partial
        finally:
            if _is_at(fd, partial):
                shutil.rmtree(partial, ignore_errors=True)
    finally:
        os.close(fd)


def _claim(fd: int, partial: Path, out: Path) -> None:
    if not _is_locked(fd) or not _is_at(fd, partial):  # or renamed by who had it before
        raise OutputError(
            f"another process is writing to {out}", remedy="wait for it, or choose another place"
        )


def _is_locked(fd: int) -> bool:
    """By us, until `fd` is closed."""
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return True  # on a file system without locks
    return True


def _is_at(fd: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(fd), os.lstat(path))
    except FileNotFoundError:
        return False


def _clear(directory: Path) -> None:
    for path in directory.iterdir():
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()


def write_into(made: Artefact, directory: Path) -> None:
    """The files of the adapter and adapterhub.json, into an empty directory."""
    from adapterhub import digest
    from adapterhub.formats.roots import adapter_root

    formats.write(made.adapter, directory, to=made.adapter.format)
    written = []
    for path in sorted(directory.iterdir()):
        size = path.stat().st_size
        written.append(manifests.StoredFile(path.name, size, digest.of_file(path)))
    manifest = manifests.build(
        made.adapter,
        files=written,
        root=adapter_root(made.adapter),
        labels=made.adapter.labels,
        base=made.base,
        lineage=made.lineage,
    )
    place = directory / checkout.MANIFEST
    place.write_bytes(checkout.to_bytes(manifest))
    files.fsync_path(place)
