"""Where a merge writes: `<out>.partial`, ours alone while it lasts, then renamed to `<out>`."""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from adapterhub.errors import OutputError

MARKER = ".adapterhub-partial"
SPARE_BYTES = 1 << 20  # config, index, report


@contextmanager
def partial_directory(out: Path, nbytes: int) -> Iterator[Path]:
    """`<out>.partial`, ours alone while it lasts; gone if anything fails."""
    check_output(out)
    partial = out.with_name(f"{out.name}.partial")
    with _named_output_errors(out):
        out.parent.mkdir(parents=True, exist_ok=True)
        _check_space(out, nbytes)
        with _claimed(partial):
            try:
                yield partial
            except BaseException:
                shutil.rmtree(partial, ignore_errors=True)
                raise


def check_output(out: Path) -> None:
    """Raises OutputError if something is at `out` already."""
    with _named_output_errors(out):
        is_directory = out.is_dir() and not out.is_symlink()
        if is_directory and any(out.iterdir()):
            raise OutputError(
                f"{out} is not empty", remedy="choose a new directory, or empty this one"
            )
        if not is_directory and os.path.lexists(out):
            raise OutputError(f"{out} exists and is not a directory", remedy="choose another --out")


def _check_space(out: Path, nbytes: int) -> None:
    free = shutil.disk_usage(out.parent).free
    if free < nbytes + SPARE_BYTES:
        raise OutputError(
            f"{out.parent} has {free:,} bytes free, the merge writes {nbytes:,}",
            remedy="free some space, or choose another --out",
        )


@contextmanager
def _claimed(partial: Path) -> Iterator[None]:
    """A fresh directory with a locked marker; what a killed merge left there is removed."""
    if os.path.lexists(partial) and not _is_remainder(partial):
        raise OutputError(
            f"{partial} exists and is not the remainder of a merge",
            remedy="move it away, or choose another --out",
        )
    with _marked(partial) as marker:
        try:
            fcntl.flock(marker, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise OutputError(
                f"another merge is writing to {partial}", remedy="wait for it to end"
            ) from None
        _clear(partial)
        yield


def _marked(partial: Path) -> BinaryIO:
    partial.mkdir(exist_ok=True)
    try:
        return (partial / MARKER).open("ab")
    except OSError:
        with suppress(OSError):
            partial.rmdir()
        raise


def _is_remainder(partial: Path) -> bool:
    """A directory that is empty or has our marker; never a link to one elsewhere."""
    if partial.is_symlink() or not partial.is_dir():
        return False
    marker = partial / MARKER
    return (marker.is_file() and not marker.is_symlink()) or not any(partial.iterdir())


def _clear(partial: Path) -> None:
    for entry in partial.iterdir():
        if entry.is_dir() and not entry.is_symlink():
            shutil.rmtree(entry)
        elif entry.name != MARKER:
            entry.unlink()


@contextmanager
def _named_output_errors(out: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        remedies = {
            errno.ENOSPC: "the disk is full: free some space, or choose another --out",
            errno.EDQUOT: "the quota is used up: free some space, or choose another --out",
            errno.EACCES: "choose an --out that you may write to",
            errno.EROFS: "choose an --out that you may write to",
        }
        raise OutputError(
            f"writing {out} failed: {error.strerror}",
            remedy=remedies.get(error.errno or 0, "nothing was left behind; try again"),
        ) from error


# --- files ---------------------------------------------------------------------------------


def publish(directory: Path, out: Path) -> None:
    """Give the directory its name. The marker goes last, so that a remainder always has one."""
    sync_directory(directory)
    directory.replace(out)
    try:
        sync_directory(out.parent)
    except OSError:
        shutil.rmtree(out, ignore_errors=True)
        raise
    with suppress(OSError):
        (out / MARKER).unlink()


def write(path: Path, data: bytes) -> None:
    with path.open("xb") as file:
        file.write(data)
        sync(file)


def sync(file: BinaryIO) -> None:
    file.flush()
    os.fsync(file.fileno())


def sync_directory(directory: Path) -> None:
    fd = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
