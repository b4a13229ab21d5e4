"""The compiled kernel: found, checked, and one of its paths chosen for this machine."""

from __future__ import annotations

import ctypes
import os
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from adapterhub.errors import InvalidOption, NotSupported

LIBRARY = Path(__file__).with_name("_merge.so")  # as build.py places it
ABI = 2  # of merge.c; a library that says otherwise was built from other sources
SWITCH = "ADAPTERHUB_KERNEL"
PATHS = {"portable": 0, "avx2": 1, "avx512": 2}  # in ascending order of speed
REBUILD = "python -m adapterhub.kernels.build"


class Term(ctypes.Structure):
    """`Term` of merge.h; the scale as its bits, since a conversion here could flush it to zero."""

    _fields_ = (
        ("rows", ctypes.c_void_p),
        ("columns", ctypes.c_void_p),
        ("rank", ctypes.c_int64),
        ("scale", ctypes.c_uint32),
    )


class Plan(ctypes.Structure):
    """`Plan` of merge.h."""

    _fields_ = (
        ("path", ctypes.c_int32),
        ("in_dtype", ctypes.c_int32),
        ("out_dtype", ctypes.c_int32),
        ("count", ctypes.c_int32),
        ("rows", ctypes.c_int64),
        ("columns", ctypes.c_int64),
        ("terms", ctypes.POINTER(Term)),
    )


class Fault(ctypes.Structure):
    """`Fault` of merge.h."""

    _fields_ = (("weight", ctypes.c_int64), ("result", ctypes.c_int64))


@dataclass(frozen=True)
class Kernel:
    """One way of computing. Without `library` it is the numpy reference, and `note` says why.

    `number` is merge.c's for the path.
    """

    name: str
    library: ctypes.CDLL | None = None
    number: int = 0
    note: str = ""


def choose() -> Kernel:
    """The fastest path of this machine, or the one that $ADAPTERHUB_KERNEL names.

    Raises InvalidOption for an unknown name, NotSupported for one that cannot run here.
    """
    return _choose(os.environ.get(SWITCH, ""), LIBRARY)


@cache
def _choose(wanted: str, file: Path) -> Kernel:
    if wanted == "numpy":
        return Kernel("numpy", note=f"{SWITCH}=numpy")
    if wanted and wanted not in PATHS:
        raise InvalidOption(
            f"{SWITCH}={wanted}: there is no such kernel",
            remedy=f"one of {', '.join([*reversed(PATHS), 'numpy'])}, or unset it",
        )
    try:
        library = _load(file)
    except _Unusable as reason:
        if wanted:
            raise NotSupported(f"{SWITCH}={wanted}: {reason}", remedy=REBUILD) from None
        return Kernel("numpy", note=f"{reason}; to build it: {REBUILD}")
    usable = _usable(library)
    if wanted and wanted not in usable:
        raise NotSupported(
            f"{SWITCH}={wanted}: this processor cannot run it",
            remedy=f"one of {', '.join([*usable, 'numpy'])}, or unset it",
        )
    return usable[wanted or next(iter(usable))]


def _usable(library: ctypes.CDLL) -> dict[str, Kernel]:
    """By name, fastest first."""
    return {
        name: Kernel(name, library, PATHS[name])
        for name in reversed(PATHS)
        if library.adapterhub_merge_runs(PATHS[name])
    }


class _Unusable(Exception):
    pass


def _load(file: Path) -> ctypes.CDLL:
    if not file.exists():
        raise _Unusable("the compiled kernel was not built")
    try:
        library = ctypes.CDLL(str(file))
        abi = int(library.adapterhub_merge_abi())
        runs, run = library.adapterhub_merge_runs, library.adapterhub_merge_run
        pack = library.adapterhub_merge_pack
    except (OSError, AttributeError) as error:
        raise _Unusable(f"{file.name} is damaged or of another system ({error})") from None
    if abi != ABI:
        raise _Unusable(f"{file.name} is of version {abi}, this package needs {ABI}")
    runs.argtypes, runs.restype = [ctypes.c_int32], ctypes.c_int32
    pack.argtypes = [
        ctypes.c_int32,
        ctypes.c_void_p,
        *[ctypes.c_int64] * 4,
        ctypes.c_void_p,
    ]
    pack.restype = None
    run.argtypes = [
        ctypes.POINTER(Plan),
        *[ctypes.c_void_p] * 2,
        *[ctypes.c_int64] * 2,
        ctypes.POINTER(Fault),
    ]
    run.restype = None
    return library
