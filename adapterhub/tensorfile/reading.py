"""Files opened and read with suspicion: regular files only, never mapped, never a short read.

A mapped file that is truncated while it is read kills the process with SIGBUS; `pread` returns
fewer bytes instead, which is an error that can be named.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from adapterhub.errors import InvalidTensorFile, NotFound

AGAIN = "get the file anew: download or export it again"


def refusal(path: Path, what: str, offset: int, remedy: str = AGAIN) -> InvalidTensorFile:
    """The error for damage at byte `offset` of the file."""
    return InvalidTensorFile(f"{path}: {what} (at byte {offset})", remedy=remedy, offset=offset)


@contextmanager
def open_regular(path: Path) -> Iterator[int]:
    """A read-only descriptor of a regular file.

    Raises:
        NotFound: there is no such file.
        InvalidTensorFile: a directory, pipe, socket or device; no permission.
    """
    try:
        # O_NONBLOCK: opening a pipe that nobody writes to would wait for ever.
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except FileNotFoundError:
        raise NotFound(f"{path}: no such file", remedy="check the path") from None
    except OSError as error:
        raise InvalidTensorFile(
            f"{path}: cannot be opened: {error.strerror}",
            remedy="check its permissions, and that it is a file",
        ) from error
    try:
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            raise InvalidTensorFile(
                f"{path}: is not a regular file", remedy="name a file with tensors in it"
            )
        yield fd
    finally:
        os.close(fd)


def buffer(nbytes: int) -> np.ndarray[tuple[int], np.dtype[Any]]:
    """`nbytes` uninitialised bytes (uint8) at an address that 64 divides.

    Large blocks of malloc begin 16 bytes past a page. To there the kernel copies a file so much
    slower (measured on an AMD EPYC) that reading and hashing takes 1.6 times as long.
    """
    raw = np.empty(nbytes + 64, np.uint8)
    start = -raw.ctypes.data % 64
    return raw[start : start + nbytes]


def fill(fd: int, target: memoryview, offset: int, path: Path) -> None:
    """Fill `target` with the bytes from `offset` on.

    Raises:
        InvalidTensorFile: the file ends before, or the disk fails.
    """
    done = 0
    while done < len(target):
        try:
            count = os.preadv(fd, [target[done:]], offset + done)
        except OSError as error:
            raise refusal(
                path, f"cannot be read: {error.strerror}", offset + done, "check the disk"
            ) from error
        if count == 0:
            missing = len(target) - done
            raise refusal(
                path,
                f"ends {missing} bytes early: it was cut while in use",
                offset + done,
                "see what else writes to this file, then get it anew",
            )
        done += count
