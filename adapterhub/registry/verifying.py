"""Is everything still what it was? Damage is listed, one sentence each."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from adapterhub import schema
from adapterhub.errors import AdapterHubError
from adapterhub.store import Store

Progress = Callable[[int], None]


def verify(store: Store, ref: str | None, progress: Progress | None) -> dict[str, Any]:
    """Of the version that `ref` means, or of every live version; files shared are hashed once."""
    problems: list[str] = []
    versions = [store.resolve(ref)] if ref is not None else list(_versions(store, problems))
    blobs: dict[str, str] = {}
    for name, digest in versions:
        where = f"{name}@{digest[:19]}"
        try:
            manifest = store.manifest(digest)
            schema.check(manifest, "manifest", what="its manifest")
        except AdapterHubError as error:
            problems.append(f"{where}: {error.message}")
            continue
        for entry in manifest["files"]:
            blobs.setdefault(entry["sha256"], f"{where}: {entry['path']}")
    for blob, where in blobs.items():
        problems += [f"{where}: {text}" for text in _damage(store, blob)]
        if progress:
            progress(1)
    return {"versions": len(versions), "files": len(blobs), "problems": problems}


def _versions(store: Store, problems: list[str]) -> Iterator[tuple[str, str]]:
    """`(name, digest)` of every live version; names whose log is damaged become problems."""
    for name in store.names():
        try:
            state = store.state(name)
        except AdapterHubError as error:
            problems.append(f"{name}: {error.message}")
            continue
        for digest in state.versions:
            yield name, digest


def _damage(store: Store, blob: str) -> Iterator[str]:
    try:
        store.verify_blob(blob)
    except AdapterHubError as error:
        yield error.message
    except OSError as error:
        yield f"blob {blob} cannot be read: {error.strerror}"
