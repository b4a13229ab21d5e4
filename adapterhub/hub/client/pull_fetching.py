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


class Meter:
    """What huggingface_hub takes for a progress bar: counts, and stops what is too long."""

    limit = 0
    path = ""
    count: Callable[[int], None]
    total: int | None = None
    n = 0

    def __init__(self, *args: Any, **options: Any) -> None: ...

    def update(self, nbytes: float | None = 1) -> None:
        self.n += int(nbytes or 0)
        if self.n > self.limit:
            raise IntegrityError(
                f"{self.path} goes on after {self.limit:,} bytes, and the hub states fewer",
                remedy="do not trust this hub, or the network between",
            )
        self.count(int(nbytes or 0))

    def _nothing(self, *args: Any, **options: Any) -> None: ...

    update_transfer = set_transfer_postfix_str = set_postfix_str = _nothing
    close = refresh = set_description = _nothing

    def __enter__(self) -> Meter:
        return self

    def __exit__(self, *args: object) -> None: ...


class Fetcher:
    """Brings files of one listing; `downloaded` counts the bytes that came over the wire."""

    def __init__(self, listing: Listing, progress: Progress | None = None) -> None:
        self.downloaded = 0
        self.progress = progress
        self._listing = listing
        self._spec = Spec(listing.repository)
        self._mutex = threading.Lock()
        self._stopped = threading.Event()

    def fetch(self, entries: Sequence[Entry]) -> list[Path]:
        """Where each lies in the cache, hashed. Raises IntegrityError, RemoteError and others."""
        self._stopped = threading.Event()
        with ThreadPoolExecutor(WORKERS) as pool:
            jobs: list[Future[Path]] = []
            for entry in entries:
                context = contextvars.copy_context()
                jobs.append(pool.submit(context.run, self._one, entry))
            try:
                return [job.result() for job in jobs]
            except BaseException:
                self._stopped.set()
                pool.shutdown(wait=False, cancel_futures=True)
                raise

    def _one(self, entry: Entry) -> Path:
        """A file that is damaged, in the cache or on the way, is brought anew, once."""
        cached = self._cached(entry)
        if cached is not None and is_whole(cached, entry):
            return cached
        if is_offline():
            raise not_at_hand(self._spec, f"{entry.path} is {'damaged' if cached else 'missing'}")
        for anew in dict.fromkeys((cached is not None, True)):
            path = self._download(entry, anew=anew)
            if is_whole(path, entry):
                return path
        raise differs(self._listing, entry, path)

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

    def _meter(self, entry: Entry) -> type[Meter]:
        class Of(Meter):
            limit = entry.size + pull_guard.SLACK_BYTES
            path = entry.path
            count = staticmethod(self._count)

        return Of

    def _count(self, nbytes: int) -> None:
        if self._stopped.is_set():
            raise InterruptedError("another file of the adapter has failed")
        with self._mutex:
            self.downloaded += nbytes
            if self.progress:
                self.progress(nbytes)


# --- digests ----------------------------------------------------------------------------------


def is_whole(path: Path, entry: Entry) -> bool:
    """Whether the file has the size and the digest that the hub states."""
    try:
        return digest_of(path, entry) == (entry.size, entry.sha256 or entry.blob)
    except OSError:
        return False


def digest_of(path: Path, entry: Entry) -> tuple[int, str]:
    """Size, and the digest that the hub states of `entry`: sha256, or the id of a blob in git."""
    return sha256_of(path) if entry.sha256 else blob_id_of(path)


def sha256_of(path: Path) -> tuple[int, str]:
    return _hashed(path, lambda size: hashlib.sha256())


def blob_id_of(path: Path) -> tuple[int, str]:
    """The sha1 of "blob SIZE", a zero byte, and the bytes."""
    return _hashed(path, lambda size: hashlib.sha1(b"blob %d\0" % size, usedforsecurity=False))


def _hashed(path: Path, start: Callable[[int], Any]) -> tuple[int, str]:
    with path.open("rb", buffering=0) as file:
        size = os.fstat(file.fileno()).st_size
        hasher = start(size)
        while piece := file.read(_PIECE_BYTES):
            hasher.update(piece)
    return size, hasher.hexdigest()


def differs(listing: Listing, entry: Entry, path: Path) -> IntegrityError:
    size, got = digest_of(path, entry)
    kind = "sha256" if entry.sha256 else "git-sha1"
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
