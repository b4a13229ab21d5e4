"""The floating-point mode in which kernels run: round to nearest even, subnormals kept.

Other code in the process may have switched this thread to flush subnormals to zero
(`torch.set_flush_denormal(True)` does), which would change bits of a merge. The mode belongs to a
thread, so each worker enters `default_float_mode` itself.
"""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache

import numpy as np

from adapterhub.errors import NotSupported

# Halfway cases of both signs and the smallest subnormal: each of flushing and the three other
# rounding modes gets at least one of them wrong.
_WIDE = np.array([2.0**-149, 1 + 2.0**-24, -1 - 2.0**-24, 1 + 3 * 2.0**-24], np.float64)
_NARROW = np.array([0x00000001, 0x3F800000, 0xBF800000, 0x3F800002], np.uint32)
_FENV_BYTES = 256  # fenv_t has at most 32 bytes on the systems served


class _Environment:
    """The C library's fenv.h, called on the current thread."""

    def __init__(self, library: ctypes.CDLL) -> None:
        self._get, self._set = library.fegetenv, library.fesetenv
        for function in (self._get, self._set):
            function.argtypes, function.restype = [ctypes.c_void_p], ctypes.c_int
        self._default: ctypes.c_void_p
        if sys.platform == "darwin":
            symbol = ctypes.c_byte.in_dll(library, "_FE_DFL_ENV")
            self._default = ctypes.c_void_p(ctypes.addressof(symbol))
        else:
            self._default = ctypes.c_void_p(-1)  # FE_DFL_ENV of glibc and musl

    def save(self) -> ctypes.Array[ctypes.c_uint64]:
        saved = (ctypes.c_uint64 * (_FENV_BYTES // 8))()
        if self._get(ctypes.addressof(saved)) != 0:
            raise _unsuitable("fegetenv failed")
        return saved

    def set_default(self) -> None:
        self._set(self._default)  # a failure is caught by the probe

    def restore(self, saved: ctypes.Array[ctypes.c_uint64]) -> None:
        if self._set(ctypes.addressof(saved)) != 0:
            raise _unsuitable("fesetenv could not restore the mode it found")


@cache
def _environment() -> _Environment | None:
    """None where the C library offers no fesetenv."""
    for name in (None, "libm.so.6"):
        try:
            return _Environment(ctypes.CDLL(name))
        except (AttributeError, OSError, ValueError):
            continue
    return None


@contextmanager
def default_float_mode() -> Iterator[None]:
    """Run the body in the default mode of this thread, then restore what was found.

    Raises NotSupported where the mode is unsuitable and cannot be changed.
    """
    environment = _environment()
    if environment is None:
        check_float_mode()
        yield
        return
    saved = environment.save()
    try:
        environment.set_default()
        check_float_mode()
        yield
    finally:
        environment.restore(saved)


def check_float_mode() -> None:
    """Raise NotSupported unless this thread keeps subnormals and rounds to nearest even."""
    # Bytes are compared, since a comparison of floats would itself take a subnormal for zero.
    with np.errstate(all="ignore"):
        narrowed = _WIDE.astype(np.float32).tobytes() == _NARROW.tobytes()
        widened = _NARROW[:1].view(np.float32).astype(np.float64).tobytes() == _WIDE[:1].tobytes()
    if not (narrowed and widened):
        raise _unsuitable("this thread flushes subnormals or does not round to nearest even")


def _unsuitable(reason: str) -> NotSupported:
    return NotSupported(
        f"floating-point mode: {reason}, so a merge would not give the same bits everywhere",
        remedy="undo torch.set_flush_denormal(True) and the like, or merge in a fresh process",
    )
