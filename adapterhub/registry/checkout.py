"""A version as a plain directory: linked to the store's blobs (`path`), or copied (`export`)."""

from __future__ import annotations

import json
import os
import secrets
import shutil
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from adapterhub import digest
from adapterhub.errors import OutputError
from adapterhub.store import Store, files

MANIFEST = "adapterhub.json"


def linked(store: Store, version: str, manifest: Mapping[str, Any]) -> Path:
    """A directory of links to blobs, made once per version and kept below `cache/`."""
    place = _cache(store) / version.removeprefix(digest.PREFIX)
    if place.is_dir():
        return place
    with files.named_errors(store.home):
        _build(
            store, manifest, place, lambda blob, target, depth: _link(blob, target, place, depth)
        )
    return place


def _link(blob: Path, target: Path, place: Path, depth: int) -> None:
    """A relative link, so that the home can be moved; `depth`: folders between it and `place`."""
    target.symlink_to(Path(*[".."] * depth, os.path.relpath(blob, place)))


def copied(store: Store, manifest: Mapping[str, Any], out: Path) -> None:
    """The original bytes and the manifest in `out`, which must not exist or be empty."""
    out = out.absolute()
    if os.path.lexists(out) and (not out.is_dir() or any(out.iterdir())):
        raise OutputError(f"{out} is not empty", remedy="choose a new directory")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        _build(store, manifest, out, lambda blob, target, _: _copy(blob, target))
        files.fsync_path(out.parent)
    except OSError as error:
        raise OutputError(
            f"{out} cannot be written: {error.strerror}",
            remedy="free some space, or choose a directory that you may write to",
        ) from error


def _copy(blob: Path, target: Path) -> None:
    with blob.open("rb") as source, target.open("xb") as copy:
        shutil.copyfileobj(source, copy, 1 << 20)
        copy.flush()
        os.fsync(copy.fileno())


def _build(
    store: Store,
    manifest: Mapping[str, Any],
    place: Path,
    put: Callable[[Path, Path, int], None],
) -> None:
    """Fill a directory beside `place`, then rename it: nobody sees half of it."""
    partial = place.with_name(f".{place.name}.{secrets.token_hex(4)}.partial")
    partial.mkdir(parents=True)
    try:
        for entry in manifest["files"]:
            target = partial / entry["path"]  # the schema lets only plain relative paths in
            target.parent.mkdir(parents=True, exist_ok=True)
            put(store.blob_path(entry["sha256"]), target, entry["path"].count("/"))
        (partial / MANIFEST).write_bytes(to_bytes(manifest))
        partial.replace(place)
    except OSError:
        shutil.rmtree(partial, ignore_errors=True)
        if not (place / MANIFEST).is_file():  # else another process was faster
            raise
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise


def to_bytes(manifest: Mapping[str, Any]) -> bytes:
    return (json.dumps(manifest, indent=1, sort_keys=True, ensure_ascii=False) + "\n").encode()


def sweep(store: Store, alive: Iterable[str]) -> int:
    """Remove the linked directories of versions that are gone; how many there were."""
    keep = {version.removeprefix(digest.PREFIX) for version in alive}
    gone = [p for p in _cache(store).glob("*") if p.name not in keep and p.is_dir()]
    for place in gone:
        shutil.rmtree(place, ignore_errors=True)
    return len(gone)


def _cache(store: Store) -> Path:
    return store.home / "cache" / "adapters"
