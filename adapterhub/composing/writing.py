"""An adapter that was made, with its base and lineage: into a directory, or into the registry."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from adapterhub import formats
from adapterhub.adapter import Adapter
from adapterhub.errors import InvalidOption, OutputError
from adapterhub.registry import Registry, manifests
from adapterhub.store import check_name


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
    """Raises OutputError where there is something already."""
    if out.is_symlink() or (out.exists() and (not out.is_dir() or any(out.iterdir()))):
        raise OutputError(f"{out} is not empty", remedy="choose a new directory")


def deliver(
    made: Artefact,
    name: str | None,
    out: str | Path | None,
    registry: Registry,
    sources: Sequence[str],
) -> str | None:
    """Into `out`, or as the new version of `name`, which is returned: `name@sha256:…`.

    `sources`: the inputs, for the version's origin.
    """
    if out is not None:
        write(made, Path(out))
        return None
    operation = made.lineage["operation"]
    with tempfile.TemporaryDirectory(prefix=f"{operation}-") as place:
        directory = Path(place)
        write_into(made, directory)
        origin = {"operation": operation, "inputs": list(sources)}
        return registry.add(directory, name=str(name), origin=origin).version


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
