"""The store: blobs, manifests, ref logs, and the index that is derived from them.

It knows nothing of what adapters mean. `Store` is its whole surface.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO

from adapterhub.store.names import LATEST, Ref, check_name, check_tag, parse_ref

__all__ = ["LATEST", "Filters", "Ref", "Row", "Store", "check_name", "check_tag", "parse_ref"]


# SIGNATURES ONLY: bodies and final homes of these dataclasses follow (all stay importable here).


@dataclass(frozen=True)
class Event:
    id: str
    kind: str  # "tag", "card", "remove", "restore", "rename"
    when: str  # UTC, ISO 8601, "2026-01-31T12:00:00.123456Z"
    who: str
    fields: Mapping[str, Any]  # of a tag: tag, from, to, op, origin; of a card: set, unset; ...


@dataclass(frozen=True)
class State:
    """What a ref log amounts to."""

    name: str
    tags: Mapping[str, str] = field(default_factory=dict)  # tag → digest
    versions: Mapping[str, str] = field(default_factory=dict)  # live digest → when added
    removed: Mapping[str, str] = field(default_factory=dict)  # removed digest → when
    card: Mapping[str, Any] = field(default_factory=dict)
    created: str = ""
    updated: str = ""


@dataclass(frozen=True)
class Outcome:
    """What a verb did. `events` is empty where nothing had to change."""

    name: str
    status: str  # "added", "unchanged", "tagged", "untagged", "removed", "restored", "renamed"
    digest: str | None
    previous: str | None  # the digest that the (first) tag pointed at before
    events: tuple[Event, ...]


@dataclass(frozen=True)
class Filters:
    method: str | None = None
    base: str | None = None  # substring of the base's name, or `sha256:…` prefix of a root
    rank_min: int | None = None
    rank_max: int | None = None
    task: str | None = None
    tag: str | None = None
    topic: str | None = None
    licence: str | None = None
    text: str | None = None


@dataclass(frozen=True)
class Row:
    """A live name and the facts of its latest version."""

    name: str
    digest: str
    created: str
    updated: str
    description: str | None
    licence: str | None
    language: tuple[str, ...]
    topics: tuple[str, ...]
    tags: Mapping[str, str]
    versions: int
    method: str | None
    variants: tuple[str, ...]
    format: str | None
    rank_min: int | None
    rank_max: int | None
    task: str | None
    labels: tuple[str, ...]
    dtype: str | None
    parameters: int | None
    bytes: int | None
    base_name: str | None
    base_structure_root: str | None
    base_weights_root: str | None
    cursor: str  # give it as `after` to get the next page


@dataclass(frozen=True)
class GcReport:
    manifests: int
    blobs: int
    temporaries: int
    bytes_freed: int
    manifests_kept: int
    blobs_kept: int
    dry_run: bool


class Store:
    """A registry's home on disk. Usable as a context manager; safe between threads."""

    home: Path

    def __init__(
        self, home: Path | str | None = None, *, on_note: Callable[[str], None] | None = None
    ) -> None: ...

    @staticmethod
    def default_home() -> Path: ...
    def close(self) -> None: ...
    def __enter__(self) -> Store: ...
    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None: ...

    # contents; hold `writing()` from the first put until the ref is committed
    @contextmanager
    def writing(self) -> Iterator[None]: ...
    def put_blob_file(self, path: Path) -> tuple[str, int]: ...  # digest, size
    def put_blob_bytes(self, data: bytes) -> tuple[str, int]: ...
    def open_blob(self, digest: str) -> BinaryIO: ...
    def blob_path(self, digest: str) -> Path: ...
    def has_blob(self, digest: str) -> bool: ...
    def verify_blob(self, digest: str) -> None: ...  # IntegrityError
    def put_manifest(self, document: Mapping[str, Any]) -> str: ...
    def manifest(self, digest: str) -> dict[str, Any]: ...  # re-hashed; IntegrityError, NotFound

    # refs
    def names(self, prefix: str = "", limit: int | None = None) -> tuple[str, ...]: ...
    def exists(self, name: str) -> bool: ...
    def state(self, name: str) -> State: ...  # NotFound when unknown or removed
    def resolve(self, ref: str | Ref) -> tuple[str, str]: ...  # name, digest
    def history(self, name: str) -> tuple[Event, ...]: ...  # oldest first; removed names too
    def add_version(
        self,
        name: str,
        digest: str,
        *,
        tags: Iterable[str] = (),
        origin: Mapping[str, Any] | None = None,
        card: Mapping[str, Any] | None = None,
        expect_new: bool = False,
    ) -> Outcome: ...
    def tag(self, name: str, digest: str, tag: str, *, expect: str | None = None) -> Outcome: ...
    def untag(self, name: str, tag: str) -> Outcome: ...
    def rollback(self, name: str, tag: str, to: str | None = None) -> Outcome: ...
    def remove_version(self, name: str, digest: str) -> Outcome: ...
    def remove_name(self, name: str) -> Outcome: ...
    def rename(self, old: str, new: str) -> Outcome: ...
    def edit_card(
        self, name: str, set: Mapping[str, Any] | None = None, unset: Iterable[str] = ()
    ) -> Outcome: ...

    # index
    def list(
        self,
        filters: Filters = Filters(),  # noqa: B008
        *,
        order: str = "updated",  # or "name"
        limit: int = 50,
        offset: int = 0,
        after: str | None = None,
    ) -> tuple[Row, ...]: ...
    def count(self, filters: Filters = Filters()) -> int: ...  # noqa: B008
    def search(
        self,
        text: str,
        filters: Filters = Filters(),  # noqa: B008
        *,
        limit: int = 20,
    ) -> tuple[Row, ...]: ...
    def nearest(self, name: str, limit: int = 3) -> tuple[str, ...]: ...
    def reindex(self) -> int: ...  # number of live names
    def gc(
        self,
        *,
        grace_seconds: float = 86400.0,
        removed_days: float = 30.0,
        dry_run: bool = False,
    ) -> GcReport: ...
