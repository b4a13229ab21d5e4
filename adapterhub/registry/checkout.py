"""A version as a plain directory: linked to the store's blobs (`path`), or copied (`export`)."""

from __future__ import annotations

import json
import os
import secrets
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from adapterhub import digest, schema, strictjson
from adapterhub.errors import AdapterHubError, OutputError
from adapterhub.store import Store, files

MANIFEST = "adapterhub.json"
_UNFINISHED_SECONDS = 3600.0


def linked(store: Store, version: str, manifest: Mapping[str, Any]) -> Path:
    """A directory of links to blobs, made once per version and kept below `cache/`."""
    place = _cache(store) / version.removeprefix(digest.PREFIX)
    if place.is_dir():
        if _is_sound(store, manifest, place):
            return place
        shutil.rmtree(place, ignore_errors=True)  # somebody wrote into it
    with files.named_errors(store.home):
        _build(
            store, manifest, place, lambda blob, target, depth: _link(blob, target, place, depth)
        )
    return place


def _is_sound(store: Store, manifest: Mapping[str, Any], place: Path) -> bool:
    """Whether every file is still the link to its blob."""
    entries = manifest["files"]
    links = ((place / e["path"], store.blob_path(e["sha256"])) for e in entries)
    return all(link.is_symlink() and link.resolve() == blob.resolve() for link, blob in links)


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
        files.fsync_path(partial / MANIFEST)
        files.fsync_path(partial)
        partial.replace(place)
    except OSError:
        shutil.rmtree(partial, ignore_errors=True)
        if not (place / MANIFEST).is_file():  # else another process was faster
            raise
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise


@contextmanager
def scratch(store: Store) -> Iterator[Path]:
    """A new directory below the home, gone at the end; what a killed process left is swept."""
    place = _cache(store) / f".{secrets.token_hex(8)}.partial"
    with files.named_errors(store.home):
        place.mkdir(parents=True)
    try:
        yield place
    finally:
        shutil.rmtree(place, ignore_errors=True)


def to_bytes(manifest: Mapping[str, Any]) -> bytes:
    return (json.dumps(manifest, indent=1, sort_keys=True, ensure_ascii=False) + "\n").encode()


def sweep(store: Store, grace_seconds: float) -> None:
    """Remove linked directories whose manifest is gone, and what a killed process left."""
    before = time.time() - max(grace_seconds, _UNFINISHED_SECONDS)
    for place in _cache(store).glob("*"):
        with suppress(FileNotFoundError):  # another process collects too
            if _is_left_over(store, place, before):
                shutil.rmtree(place, ignore_errors=True)


def _is_left_over(store: Store, place: Path, before: float) -> bool:
    if place.name.startswith("."):
        return place.stat().st_mtime < before
    try:
        store.manifest(digest.PREFIX + place.name)
    except AdapterHubError:
        return True
    return False


def differences(directory: Path) -> list[str]:
    """In what an exported directory differs from its manifest, one sentence each."""
    manifest = strictjson.load_object(directory / MANIFEST)
    schema.check(manifest, "manifest", what=str(directory / MANIFEST))
    found = []
    for entry in manifest["files"]:
        path = directory / entry["path"]
        if not path.is_file():
            found.append(f"{entry['path']} is missing")
        elif digest.of_bytes(path.read_bytes()) != entry["sha256"]:
            found.append(f"{entry['path']} has changed")
    return found


def _cache(store: Store) -> Path:
    return store.home / "cache" / "adapters"
