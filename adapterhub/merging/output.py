"""Where a merge writes: `<out>.partial`, ours alone while it lasts, then renamed to `<out>`.

The hidden file there marks it as ours and is its journal: first what is being merged, then one line
for each shard that is whole and on the disk. A merge that fails removes the directory; one that is
interrupted or killed leaves it, and `--resume` continues after the shards that the journal names.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

from adapterhub import digest
from adapterhub.errors import OutputError

MARKER = ".adapterhub-partial"
SPARE_BYTES = 1 << 20  # config, index, report
Entry = Mapping[str, Any]
_NO_FALLOCATE = (errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS)


@dataclass
class Partial:
    """`whole`: what the journal of an earlier merge of the same said of its shards, by file."""

    directory: Path
    journal: BinaryIO
    whole: dict[str, Entry] = field(default_factory=dict)
    left_over: int = 0  # whole shards of an earlier merge that were not asked for

    def record(self, entry: Entry) -> None:
        """Note a shard, `entry["file"]`, as whole; to be called when it is on the disk."""
        _append(self.journal, entry)
        self.whole[entry["file"]] = entry


@contextmanager
def partial_directory(
    out: Path, nbytes: int, *, key: str = "", resume: bool = False
) -> Iterator[Partial]:
    """`<out>.partial`, ours alone while it lasts; gone if anything fails.

    `key` tells what is being merged. With `resume`, files of an earlier merge with the same key
    stay; the caller has to check them. Raises OutputError.
    """
    check_output(out)
    partial = out.with_name(f"{out.name}.partial")
    with _named_output_errors(out):
        out.parent.mkdir(parents=True, exist_ok=True)
        with _claimed(partial) as marker:
            ours = Partial(partial, marker, *_earlier(marker, partial, key, resume))
            is_started = False
            try:
                _clear(partial, keep=ours.whole)
                _check_space(out, nbytes - _size(partial))
                _start(marker, [{"key": key}, *ours.whole.values()])
                is_started = True
                yield ours
            except BaseException as error:
                is_kept = isinstance(error, KeyboardInterrupt) or not is_started
                if not (is_kept and ours.whole):
                    shutil.rmtree(partial, ignore_errors=True)
                raise


def _earlier(
    marker: BinaryIO, partial: Path, key: str, resume: bool
) -> tuple[dict[str, Entry], int]:
    """The shards that an earlier merge finished, and how many of them are thrown away."""
    lines = _lines(marker)
    if not lines:
        return {}, 0
    found: dict[str, Entry] = {str(line["file"]): line for line in lines[1:] if "file" in line}
    if not resume:
        return {}, len(found)
    if lines[0].get("key") != key:
        raise OutputError(
            f"{partial} is the remainder of another merge",
            remedy="give the same base, adapters and options, or leave --resume out to start anew",
        )
    return found, 0


def _lines(marker: BinaryIO) -> list[dict[str, Any]]:
    """The journal's lines up to the first that a crash has cut off."""
    marker.seek(0)
    found = []
    for line in marker:
        try:
            entry = json.loads(line)
            text = json.dumps(entry["entry"], sort_keys=True)
            if not line.endswith(b"\n") or entry["check"] != digest.of_bytes(text.encode("ascii")):
                break
        except (ValueError, KeyError, TypeError, RecursionError):
            break
        found.append(entry["entry"])
    return found


def _start(marker: BinaryIO, entries: Sequence[Entry]) -> None:
    """The journal with these lines and no others."""
    if _lines(marker) == list(entries) and not marker.read():
        return
    marker.truncate(0)
    for entry in entries:
        _append(marker, entry)


def _append(marker: BinaryIO, entry: Entry) -> None:
    text = json.dumps(entry, sort_keys=True)
    check = digest.of_bytes(text.encode("ascii"))
    marker.write(json.dumps({"entry": entry, "check": check}, sort_keys=True).encode() + b"\n")
    sync(marker)


def _size(partial: Path) -> int:
    return sum(path.stat().st_size for path in partial.iterdir())


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
def _claimed(partial: Path) -> Iterator[BinaryIO]:
    """The directory with a locked marker, whatever a killed merge left there."""
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
        yield marker


def _marked(partial: Path) -> BinaryIO:
    partial.mkdir(exist_ok=True)
    try:
        return (partial / MARKER).open("a+b")
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


def _clear(partial: Path, keep: Mapping[str, Entry]) -> None:
    for entry in partial.iterdir():
        if entry.is_dir() and not entry.is_symlink():
            shutil.rmtree(entry)
        elif entry.name != MARKER and (entry.name not in keep or entry.is_symlink()):
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


@contextmanager
def preallocated(path: Path, nbytes: int) -> Iterator[int]:
    """A descriptor of a new file of that size, so that a full disk shows before the work."""
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
    try:
        allocate(fd, nbytes)
        yield fd
    finally:
        os.close(fd)


def allocate(fd: int, nbytes: int) -> None:
    """Reserve the room where the file system can, else only set the size."""
    try:
        os.posix_fallocate(fd, 0, nbytes)
    except (AttributeError, OSError) as error:  # macOS has no such call
        if isinstance(error, OSError) and error.errno not in _NO_FALLOCATE:
            raise
        os.ftruncate(fd, nbytes)


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
