"""`inspect`: of a path, a ref, or every adapter below a directory."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from adapterhub import formats
from adapterhub.errors import AdapterHubError, InvalidName
from adapterhub.registry import checkout, hubcache, inspection, loading, runs
from adapterhub.registry.bases import Bases
from adapterhub.registry.inspection import Inspection
from adapterhub.store import Store, parse_ref
from adapterhub.tensorfile import usable_cores


def as_path(store: Store, text: str | Path) -> Path | None:
    """The path that `text` means, or None if it means a ref. Raises InvalidName for both."""
    if isinstance(text, Path):
        return text
    if text.startswith("hub:"):
        return hubcache.adapter(text.removeprefix("hub:"))
    if text.startswith(("/", "./", "../", "~")) or text in (".", ".."):
        return Path(text).expanduser()
    path = Path(text)
    if not path.exists():
        return None
    if _is_ref(store, text):
        raise InvalidName(
            f"{text!r} is both a name in the registry and a path",
            remedy=f"write ./{text} for the path, {text}:latest for the name",
        )
    return path


def _is_ref(store: Store, text: str) -> bool:
    try:
        return store.exists(parse_ref(text).name)
    except InvalidName:
        return False


def inspect(store: Store, bases: Bases, text: str | Path, *, allow_pickle: bool) -> Inspection:
    identify = bases.identifier()
    path = as_path(store, text)
    if path is not None:
        reading = loading.read(hubcache.snapshot(path), allow_pickle)
        return inspection.inspect(reading, source=str(path), identify=identify)
    name, digest = store.resolve(str(text))
    manifest = store.manifest(digest)
    reading = formats.read(checkout.linked(store, digest, manifest))
    labels = tuple(manifest["labels"])
    source = f"{name}@{digest}"
    return inspection.inspect(reading, source=source, labels=labels, identify=identify)


def holds_many(store: Store, text: str | Path) -> Path | None:
    """The directory that `text` means, if it is no adapter itself but has some below it."""
    path = as_path(store, text)
    if path is None or not path.is_dir():
        return None
    path = hubcache.snapshot(path)
    return path if formats.detect(path) is None and any(runs.find(path)) else None


def inspect_runs(bases: Bases, root: Path, *, allow_pickle: bool) -> Iterator[Inspection]:
    found = runs.below(root)
    identify = bases.identifier()

    def look(path: Path) -> Inspection:
        try:
            reading = loading.read(path, allow_pickle)
            return inspection.inspect(reading, source=str(path), identify=identify)
        except AdapterHubError as error:
            return inspection.unreadable(path, error)

    with ThreadPoolExecutor(usable_cores(), "inspect") as pool:
        yield from pool.map(look, found)
