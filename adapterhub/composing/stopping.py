"""Work in other threads that ends early once nobody waits for it: after an error, or Ctrl-C."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")
_here = threading.local()


class Stopped(Exception):
    """Goes no further than the future of the work that it ends."""


def until(stop: threading.Event, work: Callable[[Item], Result], item: Item) -> Result:
    """`work(item)`, whose calls of `check` in this thread raise Stopped once `stop` is set."""
    _here.stop = stop
    try:
        return work(item)
    finally:
        _here.stop = None


def checker() -> Callable[[], None]:
    """Raises Stopped where the work of this thread is to end, from threads of its own too."""
    stop = getattr(_here, "stop", None)

    def check() -> None:
        if stop is not None and stop.is_set():
            raise Stopped

    return check


def check() -> None:
    """Raises Stopped where the work of this thread is to end."""
    checker()()
