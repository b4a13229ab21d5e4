"""numpy's BLAS on one thread, for as long as many small problems are solved side by side.

OpenBLAS gives each product to all cores, and waits for the slowest. Beside other work, or other
threads of ours, a QR of a few columns takes fifty times as long as on one thread (measured on 4
cores); with a thread for each module all cores are busy anyway.
"""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

_NAMES = ("scipy_openblas_{}64_", "scipy_openblas_{}", "openblas_{}64_", "openblas_{}")
_lock = threading.Lock()
_state = {"users": 0, "before": 1}


class _Library(NamedTuple):
    get: Callable[[], int]
    set: Callable[[int], Any]


@contextmanager
def one_thread() -> Iterator[None]:
    """What was set before is restored at the end of the last use; another BLAS is left alone."""
    found = _library()
    if found is None:
        yield
        return
    with _lock:
        if not _state["users"]:
            _state["before"] = found.get()
            found.set(1)
        _state["users"] += 1
    try:
        yield
    finally:
        with _lock:
            _state["users"] -= 1
            if not _state["users"]:
                found.set(_state["before"])


@cache
def _library() -> _Library | None:
    """The OpenBLAS of numpy's wheel, which is loaded already; None where numpy has another."""
    package = Path(np.__file__).parent
    for directory in (package.parent / "numpy.libs", package / ".dylibs"):
        for path in sorted(directory.glob("*openblas*")):
            try:
                loaded = ctypes.CDLL(str(path))
            except OSError:
                continue
            for name in _NAMES:
                get = getattr(loaded, name.format("get_num_threads"), None)
                set_ = getattr(loaded, name.format("set_num_threads"), None)
                if get and set_:
                    return _Library(get, set_)
    return None
