"""Files from the hub, by way of huggingface_hub's cache, each hashed before anything reads it."""

from __future__ import annotations

import contextvars
import hashlib
import os
import shutil
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

from adapterhub.errors import IntegrityError
from adapterhub.hub.client import network, pull_guard
from adapterhub.hub.client.pull_listing import Entry, Listing, Spec
from adapterhub.hub.client.pull_records import is_offline, not_at_hand
from adapterhub.store import files

WORKERS = 8
_PIECE_BYTES = 1024 * 1024
_STAGE = "pull-"
_ABANDONED_SECONDS = 86400.0
Progress = Callable[[int], None]


class Fetcher:
    """Brings files of one listing; `downloaded` counts the bytes that came over the wire."""

    def __init__(self, listing: Listing, progress: Progress | None = None) -> None:
        self.downloaded = 0
        self.progress = progress
        self._listing = listing
        self._spec = Spec(listing.repository)
        self._mutex = threading.Lock()

    def fetch(self, entries: Sequence[Entry]) -> list[Path]:
        """Where each lies in the cache, hashed. Raises IntegrityError, RemoteError and others."""
        with ThreadPoolExecutor(WORKERS) as pool:
            jobs: list[Future[Path]] = []
            for entry in entries:
                context = contextvars.copy_context()
                jobs.append(pool.submit(context.run, self._one, entry))
            try:
                return [job.result() for job in jobs]
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)
                raise

    def _one(self, entry: Entry) -> Path:
        """A cached file that is damaged is brought anew, once."""
        cached = self._cached(entry)
        if cached is not None and is_whole(cached, entry):
            return cached
        if is_offline():
            raise not_at_hand(self._spec, f"{entry.path} is {'damaged' if cached else 'missing'}")
        path = self._download(entry, anew=cached is not None)
        if not is_whole(path, entry):
            raise differs(self._listing, entry, path)
        return path

    def _cached(self, entry: Entry) -> Path | None:
        from huggingface_hub import try_to_load_from_cache

        listing = self._listing
        found = try_to_load_from_cache(listing.repository, entry.path, revision=listing.commit)
        return Path(found) if isinstance(found, str) else None

    def _download(self, entry: Entry, *, anew: bool) -> Path:
        listing = self._listing
        doing = f"downloading {entry.path} of {listing.repository}"
        api = network.client(doing)
        safe = "nothing was added, and the files that came are kept: repeat the command"
        with (
            pull_guard.watching(
                limit=entry.size + pull_guard.SLACK_BYTES, size=entry.size, commit=listing.commit
            ),
            network.named_errors(doing, repo=listing.repository, safe=safe),
        ):
            found = api.hf_hub_download(
                listing.repository,
                entry.path,
                revision=listing.commit,
                force_download=anew,
                tqdm_class=cast(Any, self._meter(entry)),
            )
        return Path(found)

    def _meter(self, entry: Entry) -> type:
        """What huggingface_hub takes for a progress bar: counts, and stops what has no end."""
        count = self._count

        class Meter:
            total: int | None = entry.size
            n = 0

            def __init__(self, *args: Any, **options: Any) -> None: ...

            def update(self, nbytes: float | None = 1) -> None:
                self.n += int(nbytes or 0)
                if self.n > entry.size + pull_guard.SLACK_BYTES:
                    raise IntegrityError(
                        f"{entry.path} is longer than the {entry.size:,} bytes that the hub states",
                        remedy="do not trust this hub, or the network between",
                    )
                count(int(nbytes or 0))

            def _nothing(self, *args: Any, **options: Any) -> None: ...

            update_transfer = set_transfer_postfix_str = set_postfix_str = _nothing
            close = refresh = set_description = _nothing

            def __enter__(self) -> Meter:
                return self

            def __exit__(self, *args: object) -> None: ...

        return Meter

    def _count(self, nbytes: int) -> None:
        with self._mutex:
            self.downloaded += nbytes
            if self.progress:
                self.progress(nbytes)


# --- digests ----------------------------------------------------------------------------------


def is_whole(path: Path, entry: Entry) -> bool:
    """Whether the file has the size and the digest that the hub states."""
    try:
        size, sha256, blob = digests(path)
    except OSError:
        return False
    stated = (entry.sha256, sha256) if entry.sha256 else (entry.blob, blob)
    return size == entry.size and stated[0] == stated[1]


def digests(path: Path) -> tuple[int, str, str]:
    """Size, sha256, and the id of a blob in git: the sha1 of "blob SIZE", a zero, and the bytes."""
    with path.open("rb", buffering=0) as file:
        size = os.fstat(file.fileno()).st_size
        sha256 = hashlib.sha256()
        blob = hashlib.sha1(b"blob %d\0" % size, usedforsecurity=False)
        while piece := file.read(_PIECE_BYTES):
            sha256.update(piece)
            blob.update(piece)
    return size, sha256.hexdigest(), blob.hexdigest()


def differs(listing: Listing, entry: Entry, path: Path) -> IntegrityError:
    size, sha256, blob = digests(path)
    kind, got = ("sha256", sha256) if entry.sha256 else ("git-sha1", blob)
    return IntegrityError(
        f"{listing.repository}: {entry.path} has {size:,} bytes with {kind} {got}, the hub states "
        f"{entry.size:,} with {entry.sha256 or entry.blob}; nothing was added",
        remedy="repeat the command; if it fails again, do not trust this hub, or the network "
        "between",
    )


# --- a directory of exactly these files -------------------------------------------------------


@contextmanager
def staged(home: Path, entries: Sequence[Entry], paths: Sequence[Path]) -> Iterator[Path]:
    """A directory with these files and no other: links (hard ones) or copies. Removed at the end.

    The cache may hold more of the repository than what was asked for and hashed.
    """
    _sweep(home / "tmp")
    with files.named_errors(home):
        place = Path(tempfile.mkdtemp(prefix=_STAGE, dir=home / "tmp"))
    try:
        with files.named_errors(home):
            for entry, path in zip(entries, paths, strict=True):
                _place(path.resolve(), place / entry.name)
        yield place
    finally:
        shutil.rmtree(place, ignore_errors=True)


def _place(source: Path, target: Path) -> None:
    try:
        os.link(source, target)
    except OSError:  # another disk, or one without links
        shutil.copyfile(source, target)


def _sweep(tmp: Path) -> None:
    """What a killed process left."""
    before = time.time() - _ABANDONED_SECONDS
    for place in tmp.glob(f"{_STAGE}*"):
        try:
            old = place.stat().st_mtime < before
        except OSError:
            continue
        if old:
            shutil.rmtree(place, ignore_errors=True)
