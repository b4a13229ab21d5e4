"""`inspect`: of a path, a ref, or every adapter below a directory."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from adapterhub import formats
from adapterhub.adapter import Reading
from adapterhub.errors import AdapterHubError, InvalidName
from adapterhub.registry import checkout, hubcache, inspection, loading, runs
from adapterhub.registry.bases import Bases
from adapterhub.registry.inspection import Inspection
from adapterhub.store import Store, parse_ref

HUB = "hub:"


def local(path: str | Path) -> Path:
    """Where the files are that `path` means: of `hub:owner/name` and the cache's own folder those
    of the newest snapshot. Raises NotFound for what is not in the cache.
    """
    text = str(path)
    if text.startswith(HUB):
        return hubcache.adapter(text.removeprefix(HUB))
    return hubcache.snapshot(Path(path).expanduser())


def as_path(store: Store, text: str | Path) -> Path | None:
    """The path that `text` means, or None if it means a ref. Raises InvalidName for both."""
    if isinstance(text, Path):
        return text
    if text.startswith(HUB):
        return local(text)
    if text.startswith(("/", "./", "../", "~")) or text in (".", ".."):
        return Path(text).expanduser()
    path = Path(text)
    try:
        if not path.exists():
            return None
    except OSError:  # longer than a path can be
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
        reading = loading.read(local(path), allow_pickle)
        return inspection.inspect(reading, source=str(path), identify=identify)
    name, digest = store.resolve(str(text))
    manifest = store.manifest(digest)
    reading = formats.read(checkout.linked(store, digest, manifest))
    reading = _known_better(reading, store.state(name).card, manifest)
    labels = tuple(manifest["labels"])
    source = f"{name}@{digest}"
    return inspection.inspect(reading, source=source, labels=labels, identify=identify)


def _known_better(
    reading: Reading, card: Mapping[str, Any], manifest: Mapping[str, Any]
) -> Reading:
    """With the card as the registry has it, and without the problems that were solved there."""
    solved = {"no-licence"} if card.get("licence") else set()
    if manifest["base"]["weights_root"]:
        solved |= {"no-base", "local-base", "unpinned-base"}
    problems = tuple(problem for problem in reading.problems if problem.code not in solved)
    return replace(reading, card={**reading.card, **card}, problems=problems)


def holds_many(store: Store, text: str | Path) -> Path | None:
    """The directory that `text` means, if it is not one adapter but has some in it."""
    path = as_path(store, text)
    if path is None or not path.is_dir():
        return None
    path = local(path)
    own = formats.members(path)
    many = len(own) > 1 or (not own and any(runs.find(path)))
    return path if many else None


def inspect_runs(bases: Bases, root: Path, *, allow_pickle: bool) -> Iterator[Inspection]:
    """In one thread: most of it is Python, and two would only wait for each other."""
    identify = bases.identifier()
    for path in runs.below(root):
        try:
            reading = loading.read(path, allow_pickle)
            yield inspection.inspect(reading, source=str(path), identify=identify)
        except AdapterHubError as error:
            yield inspection.unreadable(path, error)
