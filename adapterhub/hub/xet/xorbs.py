"""Xorbs on disk, apart for each repository and epoch.

<root>/<repository>/<epoch>/<hash>        one xorb (`stored.py`)
<root>/<repository>/<epoch>/file-<hash>   a file that was rebuilt from them: `sha256:… size`
<root>/<repository>/<epoch>/over          when the epoch was ended before its time

What may be dropped, and how clients recover. A client remembers, for each address that it uploads
to, which chunks it has sent in which xorbs, and in later processes sends only a shard that names
them. If the server has dropped one of these xorbs, every further upload of such a file fails until
the client's cache is deleted by hand. So an *epoch* is part of the address: within it nothing is
dropped; after a week tokens name another one, where clients remember nothing and send all chunks
again. Who has the old address may finish: its xorbs stay for one more day, longer than any token
lives. Rebuilt files are blobs of the store and need no xorbs. When a shard names a xorb that its
epoch lacks (a disk that lost it, a backup that came back), or that is damaged, the epoch ends at
once: the upload is refused, and repeating it succeeds.

Knowing a hash gives nothing: a space finds only what was sent to its own repository and epoch.
"""

from __future__ import annotations

import os
import re
import secrets
import shutil
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from adapterhub.errors import AdapterHubError, InvalidOption, NotFound
from adapterhub.hub.xet import hashing, stored, xorb
from adapterhub.store import files

EPOCH_SECONDS = 7 * 86400.0
GRACE_SECONDS = 86400.0
ABANDONED_SECONDS = 3600.0  # since the last write to a temporary file
_REPOSITORY = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,99}")
_EPOCH = re.compile(r"([0-9]{1,12})-[0-9a-f]{8}")
_TEMPORARY = re.compile(r"[0-9]+-[0-9a-f]{16}")
_DROPPED = ".dropped-"
_OVER = "over"


@dataclass(frozen=True)
class Collected:
    """What `collect` deleted; `size` in bytes."""

    epochs: int
    size: int


class Xorbs:
    """All repositories' xorbs below `root`, for one process; safe between its threads."""

    def __init__(self, root: Path, now: Callable[[], float] = time.time) -> None:
        self._root = root
        self._now = now
        self._mutex = threading.Lock()
        self._collecting = threading.Lock()
        self._locks: weakref.WeakValueDictionary[str, _Lock] = weakref.WeakValueDictionary()

    def space(self, repository: str, epoch: str | None = None) -> Space:
        """Where this repository's uploads go: the current epoch, made if need be, or the one named.

        Raises NotFound where the epoch has been dropped, or never was.
        """
        home = self._root / _checked(repository)
        if epoch is None:
            with files.named_errors(self._root):
                return Space(self, repository, self._current(home))
        if not _EPOCH.fullmatch(epoch) or not (home / epoch).is_dir():
            raise _gone(epoch)
        return Space(self, repository, home / epoch)

    def _current(self, home: Path) -> Path:
        with self._mutex:
            for folder in sorted(_epochs(home), key=_start, reverse=True):
                if _over_for(folder, self._now()) < 0:
                    return folder
            folder = home / f"{int(self._now())}-{secrets.token_hex(4)}"
            files.mkdir(folder)
            return folder

    def collect(self, now: float | None = None) -> Collected:
        """Drops epochs that have been over for a day, and what killed uploads left behind."""
        now = self._now() if now is None else now
        with self._collecting, files.named_errors(self._root):
            for home in _named(self._root, _REPOSITORY):
                for folder in _epochs(home):
                    if _over_for(folder, now) >= GRACE_SECONDS:
                        self._set_aside(folder)
                    else:
                        _sweep(folder, now)
                if not any(home.iterdir()):
                    self._remove_empty(home)
            return self._delete_dropped()

    def forget(self, repository: str) -> None:
        """Drops all that a repository sent; for one that was deleted."""
        with self._collecting, files.named_errors(self._root):
            for folder in _epochs(self._root / _checked(repository)):
                self._set_aside(folder)
            self._delete_dropped()

    def _set_aside(self, folder: Path) -> None:
        """Under another name first: an upload that still runs must not land in half a folder."""
        with self._mutex:
            files.rename(folder, self._root / f"{_DROPPED}{secrets.token_hex(8)}")

    def _remove_empty(self, home: Path) -> None:
        with self._mutex:
            if not any(home.iterdir()):
                home.rmdir()

    def _delete_dropped(self) -> Collected:
        epochs = size = 0
        for folder in self._root.glob(f"{_DROPPED}*"):
            epochs += 1
            size += sum(each.stat().st_size for each in folder.iterdir())
            shutil.rmtree(folder, ignore_errors=True)  # what is left is left for the next time
        return Collected(epochs, size)

    @contextmanager
    def alone(self, name: str) -> Iterator[None]:
        """One thread at a time for each name."""
        with self._mutex:
            lock = self._locks.setdefault(name, _Lock())
        with lock.mutex:
            yield

    def now(self) -> float:
        return self._now()


class _Lock:
    def __init__(self) -> None:
        self.mutex = threading.Lock()


@dataclass(frozen=True)
class Space:
    """One epoch of one repository: the only xorbs that its uploads can refer to."""

    xorbs: Xorbs
    repository: str
    folder: Path

    @property
    def epoch(self) -> str:
        """As it stands in the address that clients upload to."""
        return self.folder.name

    def has(self, hash: str) -> bool:
        """Whether the xorb is here, whole. Raises IntegrityError for what is not a hash."""
        return self._path(hashing.from_hex(hash)).is_file()

    @contextmanager
    def receiving(self, hash: str) -> Iterator[Receiving]:
        """Takes a xorb in pieces: `feed` each, then `finish`, or nothing of it stays.

        `hash` is the one in the address, 64 hexadecimal digits. Any thread may feed, one at a
        time. Raises IntegrityError, NotSupported, OutputError, and NotFound for a dropped epoch.
        """
        digest = hashing.from_hex(hash)
        target = self._path(digest)
        if target.is_file():
            yield Receiving(self, digest, None)
            return
        with ExitStack() as stack:
            with self.errors():
                fd, path = stack.enter_context(files.temporary(self.folder))
            yield Receiving(self, digest, stored.Writer(fd, path, target))

    def open(self, digest: bytes) -> stored.Stored | None:
        """The xorb of this hash (32 bytes), or None. Raises IntegrityError where it is damaged."""
        try:
            return stored.Stored(digest, self._path(digest))
        except FileNotFoundError:
            return None

    def rebuilt(self, digest: bytes) -> tuple[str, int] | None:
        """Digest and size of the blob that a file of this Xet hash became in this epoch."""
        try:
            words = (self.folder / f"file-{hashing.to_hex(digest)}").read_text("ascii").split()
            return words[0], int(words[1])
        except (OSError, ValueError, IndexError):
            return None

    @contextmanager
    def alone(self, name: str) -> Iterator[None]:
        """One thread at a time for each name in this space."""
        with self.xorbs.alone(f"{self.folder} {name}"):
            yield

    def remember(self, digest: bytes, blob: str, size: int) -> None:
        """Saves work when a client asks again; what is lost of it is done again."""
        with self.errors(), files.temporary(self.folder) as (fd, path):
            files.write_all(fd, f"{blob} {size}\n".encode("ascii"), path)
            files.rename(path, self.folder / f"file-{hashing.to_hex(digest)}")

    def retire(self) -> None:
        """Ends the epoch: tokens from now on name a new one, to which clients send all again."""
        with self.errors():
            if not (self.folder / _OVER).exists():
                (self.folder / _OVER).touch()
                os.utime(self.folder / _OVER, (self.xorbs.now(), self.xorbs.now()))

    @contextmanager
    def errors(self) -> Iterator[None]:
        """Names what the disk says: the epoch was dropped meanwhile, the disk is full …"""
        with files.named_errors(self.folder.parent.parent):
            try:
                yield
            except FileNotFoundError as error:
                if self.folder.is_dir():
                    raise
                raise _gone(self.epoch) from error

    def _path(self, digest: bytes) -> Path:
        return self.folder / hashing.to_hex(digest)


class Receiving:
    """A xorb that arrives; one that is there already is counted and dropped."""

    def __init__(self, space: Space, digest: bytes, writer: stored.Writer | None) -> None:
        self._space = space
        self._writer = writer
        self._reader = xorb.Reader(digest, writer.write) if writer else None
        self._name = f"xorb {hashing.to_hex(digest)}"
        self._size = 0

    def feed(self, piece: bytes | memoryview) -> None:
        """Checks every chunk that is complete. Raises IntegrityError or NotSupported."""
        self._size += len(piece)
        xorb.check_size(self._name, self._size)
        if self._reader is not None:
            with self._space.errors():
                self._reader.feed(piece)

    def finish(self) -> bool:
        """Whether it is new: `was_inserted`. Durable when it returns. Raises IntegrityError."""
        if self._writer is None or self._reader is None:
            return False
        with self._space.errors():
            return self._writer.publish(self._reader.finish())


def _checked(repository: str) -> str:
    if not _REPOSITORY.fullmatch(repository):
        raise InvalidOption(
            f"{repository[:80]!r} is no key of a repository: letters, digits, `-` and `_` expected",
            remedy="use the address that the token came with",
        )
    return repository


def _named(folder: Path, spelling: re.Pattern[str]) -> list[Path]:
    try:
        return [each for each in folder.iterdir() if spelling.fullmatch(each.name)]
    except (FileNotFoundError, NotADirectoryError):
        return []


def _epochs(home: Path) -> list[Path]:
    return _named(home, _EPOCH)


def _start(folder: Path) -> float:
    return float(folder.name.split("-")[0])


def _over_for(folder: Path, now: float) -> float:
    """Seconds since the epoch ended; below zero while it lasts.

    One that begins in the future was made while the clock was wrong, and ends likewise.
    """
    over = abs(now - _start(folder)) - EPOCH_SECONDS
    try:
        return max(over, abs(now - (folder / _OVER).stat().st_mtime))
    except FileNotFoundError:
        return over


def _sweep(folder: Path, now: float) -> None:
    """Removes temporary files that nobody writes to any more."""
    for each in _named(folder, _TEMPORARY):
        with suppress(FileNotFoundError):  # an upload that ends just now
            if now - each.stat().st_mtime > ABANDONED_SECONDS:
                files.unlink(each)


def _gone(epoch: str) -> AdapterHubError:
    return NotFound(
        f"epoch {epoch[:80]!r} of this repository's uploads is over",
        remedy="repeat the upload: it will ask for a new address",
    )
