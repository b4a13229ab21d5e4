"""Collecting what no name needs any more.

Kept: every version of every name, what was removed within some days, the blobs of these, those
that a server of the hub needs, and whatever is younger than a grace period. Marking runs beside
writers; then, with no writer between its first blob and its ref, the logs that changed are marked
again and the rest is deleted, manifests before blobs, so that a kill leaves no manifest without
its blobs.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any

from adapterhub.errors import AdapterHubError, IntegrityError
from adapterhub.store import files, hubroots, refs, verbs
from adapterhub.store.blobs import Blobs, Manifests, Tree
from adapterhub.store.home import Home


@dataclass(frozen=True)
class GcReport:
    """What was deleted (or would be, in a dry run) and kept. `bytes_freed` in bytes."""

    manifests: int
    blobs: int
    temporaries: int
    bytes_freed: int
    manifests_kept: int
    blobs_kept: int
    dry_run: bool


@dataclass
class _Marks:
    """What the logs need; remembers each log by its file's status, to read it once."""

    seen: dict[str, tuple[tuple[int, ...], refs.State]] = field(default_factory=dict)
    blobs: dict[str, frozenset[str]] = field(default_factory=dict)  # of each manifest


@dataclass(frozen=True)
class Collector:
    home: Home
    manifests: Manifests
    blobs: Blobs
    exclusive: Callable[[], AbstractContextManager[None]]
    settle: Callable[[], None]

    def run(self, *, grace_seconds: float, removed_days: float, dry_run: bool) -> GcReport:
        """Raises IntegrityError, with nothing deleted, where what is needed cannot be read."""
        marks = _Marks()
        before = time.time() - grace_seconds
        with files.named_errors(self.home.root):
            self._mark(marks, removed_days)
            if dry_run:
                return self._sweep(marks, removed_days, before, dry_run)
            with self.exclusive():
                self.settle()
                return self._sweep(marks, removed_days, before, dry_run)

    # --- marking

    def _mark(self, marks: _Marks, days: float) -> tuple[set[str], set[str]]:
        """Digests of the manifests and of the blobs to keep."""
        live: set[str] = set()
        removed: set[str] = set()
        for name in refs.iterate(self.home.refs):
            state = self._state(marks, name)
            if state is not None:
                live.update(state.versions)
                removed.update(verbs.kept(state, days))
        kept_blobs = self._hub_blobs()
        for digest in live | removed:
            kept_blobs |= self._blobs_of(marks, digest, needed=digest in live)
        return live | removed, kept_blobs

    def _hub_blobs(self) -> set[str]:
        try:
            return hubroots.read(self.home.hub)
        except AdapterHubError as error:
            raise _refusal(error) from error

    def _state(self, marks: _Marks, name: str) -> refs.State | None:
        path = refs.log_path(self.home.refs, name)
        try:
            found = path.stat()
        except FileNotFoundError:
            return None
        status = (found.st_ino, found.st_size, found.st_mtime_ns)
        if name not in marks.seen or marks.seen[name][0] != status:
            try:
                marks.seen[name] = (status, refs.read(self.home.refs, name).state)
            except AdapterHubError as error:
                raise _refusal(error) from error
        return marks.seen[name][1]

    def _blobs_of(self, marks: _Marks, digest: str, *, needed: bool) -> frozenset[str]:
        if digest not in marks.blobs:
            try:
                marks.blobs[digest] = frozenset(blobs_of(self.manifests.get(digest)))
            except AdapterHubError as error:
                if needed:
                    raise _refusal(error) from error
                return frozenset()  # removed, and damaged: nobody can restore it
        return marks.blobs[digest]

    # --- sweeping

    def _sweep(self, marks: _Marks, days: float, before: float, dry_run: bool) -> GcReport:
        manifests, blobs = self._mark(marks, days)
        old_manifests = _sweep_tree(self.manifests, manifests, before, dry_run)
        old_blobs = _sweep_tree(self.blobs, blobs, before, dry_run)
        temporaries = self._sweep_tmp(before, dry_run)
        return GcReport(
            manifests=old_manifests[0],
            blobs=old_blobs[0],
            temporaries=temporaries[0],
            bytes_freed=old_manifests[1] + old_blobs[1] + temporaries[1],
            manifests_kept=old_manifests[2],
            blobs_kept=old_blobs[2],
            dry_run=dry_run,
        )

    def _sweep_tmp(self, before: float, dry_run: bool) -> tuple[int, int]:
        count = size = 0
        with os.scandir(self.home.tmp) as entries:
            for entry in entries:
                found = entry.stat(follow_symlinks=False)
                if found.st_mtime < before and not entry.is_dir(follow_symlinks=False):
                    count, size = count + 1, size + found.st_size
                    if not dry_run:
                        files.unlink(self.home.tmp / entry.name)
        return count, size


def _sweep_tree(tree: Tree, keep: set[str], before: float, dry_run: bool) -> tuple[int, int, int]:
    """How many were deleted, their bytes, how many stay."""
    count = size = stay = 0
    for digest, status in tree.iterate():
        if digest in keep or status.st_mtime >= before:
            stay += 1
            continue
        count, size = count + 1, size + status.st_size
        if not dry_run:
            tree.delete(digest)
    return count, size, stay


def blobs_of(manifest: Mapping[str, Any]) -> Iterable[str]:
    """The digests of a manifest's files. Raises IntegrityError where it does not list them."""
    listed = manifest.get("files", [])
    try:
        return [str(each["sha256"]) for each in listed]
    except (KeyError, TypeError) as error:
        raise IntegrityError("a manifest does not list its files' digests") from error


def _refusal(error: AdapterHubError) -> IntegrityError:
    return IntegrityError(
        f"nothing was collected, since not all that is needed can be read: {error.message}",
        remedy=error.remedy or "`adapterhub verify` lists what is damaged",
    )
