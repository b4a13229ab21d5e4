"""Bytes from file to file, by the operating system where it can."""

from __future__ import annotations

import ctypes
import errno
import os
import threading
from collections.abc import Callable
from functools import cache

from adapterhub.merging.ranges import Copy
from adapterhub.tensorfile.reading import buffer, fill, open_regular, refusal

# What copy_file_range says where source or target, or the two together, cannot do it.
# EIO may be of either: reading and writing will tell which.
_CANNOT = (errno.EXDEV, errno.ENOSYS, errno.EINVAL, errno.EOPNOTSUPP, errno.EPERM, errno.EIO)
_PIECE_BYTES = 1 << 20
_SYNC_FILE_RANGE_WRITE = 2


class _Scratch(threading.local):
    def __init__(self) -> None:
        self.buffer = buffer(_PIECE_BYTES).data


_scratch = _Scratch()


def copy(job: Copy, target: int) -> None:
    """Copy to the descriptor `target`. Raises InvalidTensorFile for the source, OSError else."""
    with open_regular(job.path) as source:
        done = _copy_by_kernel(source, target, job)
        while done < job.nbytes:
            piece = _scratch.buffer[: min(_PIECE_BYTES, job.nbytes - done)]
            fill(source, piece, job.offset + done, job.path)
            write_at(target, piece, job.target + done)
            done += len(piece)


def _copy_by_kernel(source: int, target: int, job: Copy) -> int:
    """The bytes that were copied; fewer than all where the kernel cannot go on."""
    done = 0
    if not hasattr(os, "copy_file_range"):
        return done
    while done < job.nbytes:
        try:
            count = os.copy_file_range(
                source, target, job.nbytes - done, job.offset + done, job.target + done
            )
        except OSError as error:
            if error.errno in _CANNOT:
                break
            raise
        if count == 0:
            if os.fstat(source).st_size < job.offset + job.nbytes:
                raise refusal(job.path, "ends early: it was cut while in use", job.offset + done)
            break  # some kernels copy nothing from /proc and the like
        done += count
    return done


def write_at(fd: int, data: memoryview, offset: int) -> None:
    """Write all of `data`. Raises OSError."""
    done = 0
    while done < len(data):
        done += os.pwrite(fd, data[done:], offset + done)


@cache
def _sync_file_range() -> Callable[[int, int, int, int], int] | None:
    """Linux's call of that name, which Python does not offer."""
    try:
        function = ctypes.CDLL(None).sync_file_range
    except (AttributeError, OSError, TypeError):
        return None
    function.argtypes = [ctypes.c_int, ctypes.c_int64, ctypes.c_int64, ctypes.c_uint]
    function.restype = ctypes.c_int
    call: Callable[[int, int, int, int], int] = function
    return call


def start_writeback(fd: int, offset: int, nbytes: int) -> None:
    """Let the disk begin now, so that the sync at the end finds little left to do.

    Without it the kernel waits until much memory is dirty, and then makes the writers wait. It is
    advice: what fails here, the sync will tell.
    """
    if (call := _sync_file_range()) and nbytes:
        call(fd, offset, nbytes, _SYNC_FILE_RANGE_WRITE)
