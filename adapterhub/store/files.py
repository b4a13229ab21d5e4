"""Every write, fsync, rename and unlink of the store goes through here.

So tests can count and interrupt them (`HOOK`), and an OSError becomes one named error. A file
appears whole or not at all: temporary file in `tmp/` → fsync → rename → fsync of the directory.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import functools
import os
import secrets
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from adapterhub.errors import AdapterHubError, OutputError, StoreError

HOOK: Callable[[str, Path], None] | None = None
"""Called before each write, fsync, rename, unlink, truncate, mkdir, utime and change of the index:
(kind, path)."""

LOCK_SECONDS = 120.0
_FULL = {errno.ENOSPC, errno.EDQUOT}
_FORBIDDEN = {errno.EROFS, errno.EACCES, errno.EPERM}
_WRITE = 2  # SYNC_FILE_RANGE_WRITE
_write = os.write


def announce(kind: str, path: Path) -> None:
    if HOOK is not None:
        HOOK(kind, path)


def failure(error: OSError, home: Path) -> AdapterHubError:
    """The named error for a failed write below `home`."""
    where = error.filename or home
    if error.errno in _FULL:
        return OutputError(
            f"disk full while writing {where}",
            remedy=f"free some space below {home} (`adapterhub gc` may), "
            "or set $ADAPTERHUB_HOME to a larger disk",
        )
    if error.errno in _FORBIDDEN:
        return OutputError(
            f"home is not writable: {home} ({error.strerror} at {where})",
            remedy="correct its permissions, or set $ADAPTERHUB_HOME to a directory of yours",
        )
    return StoreError(
        f"the registry's home {home} failed at {where}: {error.strerror or error}",
        remedy="check the disk, or set $ADAPTERHUB_HOME to another directory",
    )


@contextmanager
def named_errors(home: Path) -> Iterator[None]:
    """Turns an OSError into OutputError or StoreError; named errors pass."""
    try:
        yield
    except OSError as error:
        raise failure(error, home) from error


def write_all(fd: int, data: bytes | memoryview, path: Path) -> None:
    announce("write", path)
    rest = memoryview(data)
    try:
        while len(rest):
            rest = rest[_write(fd, rest) :]
    except OSError as error:
        error.filename = str(path)
        raise


def write_all_at(fd: int, offset: int, data: bytes | memoryview, path: Path) -> None:
    announce("write", path)
    rest = memoryview(data)
    try:
        while len(rest):
            done = os.pwrite(fd, rest, offset)
            rest, offset = rest[done:], offset + done
    except OSError as error:
        error.filename = str(path)
        raise


def start_writeback(fd: int) -> None:
    """Begins to write to the disk what the file has so far, and does not wait for it.

    Only to make the fsync that follows shorter; nothing where the system has no such call.
    """
    call = _sync_file_range()
    if call is not None:
        call(fd, ctypes.c_int64(0), ctypes.c_int64(0), _WRITE)


@functools.cache
def _sync_file_range() -> Callable[..., int] | None:
    found: Callable[..., int] | None = getattr(ctypes.CDLL(None), "sync_file_range", None)
    return found


def fsync_file(fd: int, path: Path) -> None:
    announce("fsync", path)
    os.fsync(fd)


def fsync_path(path: Path) -> None:
    """Flushes a file or a directory to the disk; one that has gone needs no flushing."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return
    try:
        fsync_file(fd, path)
    finally:
        os.close(fd)


def rename(source: Path, target: Path) -> None:
    announce("rename", target)
    source.rename(target)


def unlink(path: Path) -> None:
    announce("unlink", path)
    path.unlink(missing_ok=True)


def truncate(fd: int, length: int, path: Path) -> None:
    announce("truncate", path)
    os.ftruncate(fd, length)


def mkdir(path: Path) -> bool:
    """Whether the directory had to be made."""
    if path.is_dir():
        return False
    announce("mkdir", path)
    path.mkdir(parents=True, exist_ok=True)
    return True


def touch(path: Path) -> None:
    """Makes a file young again, so that `gc` leaves it alone."""
    announce("utime", path)
    os.utime(path)


@contextmanager
def temporary(folder: Path) -> Iterator[tuple[int, Path]]:
    """A new file, open for writing; removed at the end unless it was renamed."""
    path = folder / f"{os.getpid()}-{secrets.token_hex(8)}"
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
    fd = os.open(path, flags, 0o600)
    try:
        yield fd, path
    finally:
        os.close(fd)
        path.unlink(missing_ok=True)


def publish(fd: int, temporary_path: Path, target: Path, mode: int = 0o444) -> None:
    """Gives a finished temporary file its name, durably."""
    os.fchmod(fd, mode)
    fsync_file(fd, temporary_path)
    rename(temporary_path, target)
    fsync_path(target.parent)


def append(path: Path, at: int, data: bytes, *, sync: bool) -> None:
    """Makes `data` follow the first `at` bytes of the file; what stood behind them is cut.

    After a failed write the file ends at `at` again.
    """
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        if os.fstat(fd).st_size > at:
            truncate(fd, at, path)
        os.lseek(fd, at, os.SEEK_SET)
        try:
            write_all(fd, data, path)
            if sync:
                fsync_file(fd, path)
        except OSError:
            os.ftruncate(fd, at)
            raise
    finally:
        os.close(fd)


def cut(path: Path, length: int, *, sync: bool) -> None:
    """Shortens the file to its first `length` bytes."""
    fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    try:
        truncate(fd, length, path)
        if sync:
            fsync_file(fd, path)
    finally:
        os.close(fd)


@contextmanager
def lock(
    path: Path, *, shared: bool = False, wait: float = LOCK_SECONDS, holder: str = "a process"
) -> Iterator[None]:
    """An advisory lock on the file at `path`, which the kernel drops when the process ends.

    Raises StoreError when others hold it for longer than `wait` seconds.
    """
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        if not _flock(fd, fcntl.LOCK_SH if shared else fcntl.LOCK_EX, wait):
            raise StoreError(
                f"{holder} has held the lock {path} for {wait:.0f} s",
                remedy="wait for it, or end that process (`fuser` names it); locks end with it",
            )
        yield
    finally:
        os.close(fd)


class ThreadLock:
    """A lock on a file, alone, that the thread which holds it may take again."""

    def __init__(self, path: Path, holder: str) -> None:
        self._path = path
        self._holder = holder
        self._held = threading.local()

    @contextmanager
    def __call__(self, wait: float = LOCK_SECONDS) -> Iterator[None]:
        if getattr(self._held, "yes", False):
            yield
            return
        with lock(self._path, wait=wait, holder=self._holder):
            self._held.yes = True
            try:
                yield
            finally:
                self._held.yes = False


def _flock(fd: int, operation: int, wait: float) -> bool:
    """Polls, since a blocking flock knows no limit of time."""
    deadline = time.monotonic() + wait
    pause = 0.0005
    while True:
        try:
            fcntl.flock(fd, operation | fcntl.LOCK_NB)
            return True
        except BlockingIOError:
            if time.monotonic() >= deadline:
                return False
        time.sleep(pause)
        pause = min(pause * 1.5, 0.02)
