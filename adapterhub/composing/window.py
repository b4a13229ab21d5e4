"""Many modules at once, a core for each, as long as their matrices fit into some memory."""

from __future__ import annotations

import os
import sys
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import cache
from threading import Event
from typing import TypeVar

import numpy as np

from adapterhub.composing.blas import one_thread
from adapterhub.composing.stopping import until
from adapterhub.errors import NotSupported
from adapterhub.tensorfile import usable_cores

Progress = Callable[[int], None]  # is told how many are done
HELD_BYTES = 512 << 20  # of dense matrices at a time, where one does not need more
Item = TypeVar("Item")
Result = TypeVar("Result")


def in_order(
    items: Sequence[Item],
    work: Callable[[Item], Result],
    held: Callable[[Item], int],
    threads: int | None = None,
    most_held: int = HELD_BYTES,
) -> Iterator[tuple[Item, Result]]:
    """Each item with `work(item)`, in order; `held` tells the bytes of its matrix.

    Started are at most as many as have `most_held` together, or one, and a few without a matrix.
    Raises NotSupported, before any work, where one alone is larger than this machine's memory:
    factors of a few megabytes may stand for a matrix of terabytes.
    """
    _refuse_too_large(max(map(held, items), default=0))
    keep_freed_memory()
    if len(items) == 1:  # a new thread would have to be given memory first
        with one_thread():
            yield items[0], work(items[0])
        return
    waiting: deque[tuple[Item, Future[Result]]] = deque()
    threads = threads or usable_cores()
    rest, bytes_held, most, stop = deque(items), 0, 2 * threads, Event()
    with one_thread(), ThreadPoolExecutor(threads, "compose") as pool:
        try:
            while rest or waiting:
                while rest and (
                    not waiting or (len(waiting) < most and bytes_held + held(rest[0]) <= most_held)
                ):
                    item = rest.popleft()
                    waiting.append((item, pool.submit(until, stop, work, item)))
                    bytes_held += held(item)
                item, future = waiting.popleft()
                yield item, future.result()
                bytes_held -= held(item)
        finally:
            stop.set()  # after an error nobody wants the others
            for _, future in waiting:
                future.cancel()


@cache
def keep_freed_memory() -> None:
    """glibc gives freed blocks back to the system as long as no larger one was freed (mallopt(3),
    M_MMAP_THRESHOLD); then half of the time of small factors goes into new pages. This block is the
    largest that counts, and no page of it is ever touched."""
    np.empty(31 << 20, np.uint8)


def _refuse_too_large(nbytes: int) -> None:
    memory = _memory_bytes()
    if nbytes > memory:
        raise NotSupported(
            f"the dense matrices of one module take {nbytes / 2**30:.4g} GiB, and this machine has "
            f"{memory / 2**30:.4g}",
            remedy="compose by a method that works on factors: adapterhub compose --methods",
        )


def _memory_bytes() -> int:
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, OSError, ValueError):  # not on every system
        return sys.maxsize
