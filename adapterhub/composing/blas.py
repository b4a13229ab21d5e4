"""numpy's BLAS on one thread, for as long as many small problems are solved side by side.

OpenBLAS gives each product to all cores, and waits for the slowest. Beside other work, or other
threads of ours, a QR of a few columns takes fifty times as long as on one thread (measured on 4
cores); with a thread for each module all cores are busy anyway.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

_lock = threading.Lock()
_users: list[Any] = []  # what restores the number of threads, once for each that is at work


@contextmanager
def one_thread() -> Iterator[None]:
    """What was set before is restored at the end of the last use."""
    with _lock:
        _users.append(_users[0] if _users else _libraries().limit(limits=1, user_api="blas"))
    try:
        yield
    finally:
        with _lock:
            limits = _users.pop()
            if not _users:
                limits.restore_original_limits()


@cache
def _libraries() -> Any:
    """Looked for once, which takes a millisecond: numpy's is there."""
    from threadpoolctl import ThreadpoolController

    return ThreadpoolController()
