"""An adapter that was made, with its base and lineage: into a directory, or into the registry."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from adapterhub import formats
from adapterhub.adapter import Adapter
from adapterhub.errors import InvalidOption, OutputError
from adapterhub.registry import Registry, manifests
from adapterhub.store import check_name

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
    try:
        os.lstat(out)
    except FileNotFoundError:
        _check_parents(out)
        return
    except (OSError, ValueError) as error:  # too long, below a file, no name at all
        raise OutputError(f"{str(out)!r:.200} cannot be written: {error}"[:500]) from error
    if out.is_symlink() or (out.exists() and (not out.is_dir() or any(out.iterdir()))):
        raise OutputError(f"{out} is not empty", remedy="choose a new directory")


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
) -> str | None:
    """Into `out`, or as the new version of `name`, which is returned: `name@sha256:…`.

    `inputs`: what they are called here, for the version's origin; its lineage has their digests.
    """
    if out is not None:
        write(made, Path(out))
        return None
    operation = made.lineage["operation"]
    with _temporary(f"{operation}-") as directory:
        try:
            write_into(made, directory)
        except OSError as error:
            raise _cannot(directory, error) from error
        origin = {"operation": operation, "inputs": list(inputs)}
        return registry.add(directory, name=str(name), origin=origin).version


@contextmanager
def _temporary(prefix: str) -> Iterator[Path]:
    try:
        place = Path(tempfile.mkdtemp(prefix=prefix))
    except OSError as error:
        raise _cannot(Path(tempfile.gettempdir()), error) from error
    try:
        yield place
    finally:
        shutil.rmtree(place, ignore_errors=True)


def _cannot(place: Path, error: OSError) -> OutputError:
    return OutputError(
        f"{place} cannot be written: {error.strerror}",
        remedy="make room there, or set TMPDIR to another directory",
    )


def write(made: Artefact, out: Path) -> None:
    """The adapter's files with its manifest as adapterhub.json; all of it appears at once.

    Raises OutputError where `out` exists and is not empty, or cannot be written.
    """
    check_out(out)
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        partial = Path(tempfile.mkdtemp(prefix=f".{out.name}.", dir=out.parent))
    except OSError as error:
        raise OutputError(f"{out} cannot be written: {error.strerror}") from error
    try:
        write_into(made, partial)
        partial.chmod(0o755)
        partial.replace(out)
    except OSError as error:
        raise OutputError(f"{out} cannot be written: {error.strerror}") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def write_into(made: Artefact, directory: Path) -> None:
    """The files of the adapter and adapterhub.json, into an empty directory."""
    from adapterhub import digest
    from adapterhub.formats.roots import adapter_root
    from adapterhub.registry import checkout

    formats.write(made.adapter, directory, to=made.adapter.format)
    files = []
    for path in sorted(directory.iterdir()):
        size = path.stat().st_size
        files.append(manifests.StoredFile(path.name, size, digest.of_file(path)))
    manifest = manifests.build(
        made.adapter,
        files=files,
        root=adapter_root(made.adapter),
        labels=made.adapter.labels,
        base=made.base,
        lineage=made.lineage,
    )
    (directory / checkout.MANIFEST).write_bytes(checkout.to_bytes(manifest))
