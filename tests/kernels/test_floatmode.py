from __future__ import annotations

import ctypes
import ctypes.util
import hashlib
import platform
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from cases import Case, cases

from adapterhub.errors import NotSupported
from adapterhub.kernels import floatmode, merge_low_rank

LIBM = ctypes.CDLL(ctypes.util.find_library("m"))
X86 = {"down": 0x400, "up": 0x800, "zero": 0xC00}
ARM = {"up": 0x400000, "down": 0x800000, "zero": 0xC00000}
DIRECTIONS = ARM if platform.machine() in ("aarch64", "arm64") else X86

# Of each path and its library prints whether the thread flushes subnormals before and after, and
# the digest of the merges.
UNDER_TORCH = """
import hashlib, os, sys
from pathlib import Path
import numpy as np, torch
sys.path.insert(0, sys.argv[1])
from adapterhub.kernels import library
from cases import cases
from adapterhub.kernels import merge_low_rank
def flushes():
    return not (np.float32(1e-40).reshape(1) * np.ones(1, np.float32)).view(np.uint32).any()
ready = list(cases())
for given in sys.argv[2:]:
    name, file = given.split("=", 1)
    os.environ[library.SWITCH], library.LIBRARY = name, Path(file)
    print(torch.set_flush_denormal(True), flushes(), end=" ")
    digest = hashlib.sha256()
    for case in ready:
        digest.update(merge_low_rank(case.weight, case.factors).tobytes())
    print(flushes(), digest.hexdigest())
    torch.set_flush_denormal(False)
"""


@pytest.fixture(scope="module")
def under_torch(libraries: dict[str, Path]) -> dict[str, list[str]]:
    """What it says of each path: in one process, since torch takes long to start."""
    command = [sys.executable, "-c", UNDER_TORCH, str(Path(__file__).parent)]
    command += [f"{name.removesuffix('-emulated')}={file}" for name, file in libraries.items()]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120)
    lines = done.stdout.splitlines()
    return {name: line.split() for name, line in zip(libraries, lines, strict=True)}


@contextmanager
def rounding(direction: str) -> Iterator[None]:
    if LIBM.fesetround(DIRECTIONS[direction]) != 0:
        pytest.skip("this libm does not set the rounding direction")
    try:
        yield
    finally:
        LIBM.fesetround(0)


def merges(ready: list[Case]) -> list[bytes]:
    return [merge_low_rank(case.weight, case.factors).tobytes() for case in ready]


def test_flush_of_subnormals_elsewhere_does_not_leak_in(
    path: str, under_torch: dict[str, list[str]]
) -> None:
    want = hashlib.sha256(b"".join(merges(list(cases())))).hexdigest()
    could_set, active, restored, digest = under_torch[path]
    if (could_set, active) == ("False", "False"):
        pytest.skip("torch cannot flush subnormals on this processor")
    assert (could_set, active) == ("True", "True")
    assert restored == "True"
    assert digest == want


@pytest.mark.parametrize("direction", sorted(DIRECTIONS))
def test_rounding_direction_does_not_leak_in_and_is_restored(direction: str) -> None:
    ready = [case for case in cases() if case.weight.size < 200]
    want = merges(ready)
    with rounding(direction):
        got = merges(ready)
        after = LIBM.fegetround()
    assert after == DIRECTIONS[direction]
    assert got == want


def test_mode_is_restored_after_an_error() -> None:
    with rounding("up"):
        try:
            with floatmode.default_float_mode():
                inside = LIBM.fegetround()
                raise KeyError
        except KeyError:
            after = LIBM.fegetround()
    assert (inside, after) == (0, DIRECTIONS["up"])


@pytest.mark.parametrize("direction", sorted(DIRECTIONS))
def test_unsuitable_mode_is_refused_where_it_cannot_be_set(
    direction: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ADAPTERHUB_KERNEL", "numpy")  # the compiled ones set the register
    monkeypatch.setattr(floatmode, "_environment", lambda: None)
    weight = np.ones((1, 1), np.float32)
    assert merge_low_rank(weight, []).item() == 1
    caught = None
    with rounding(direction):
        try:
            merge_low_rank(weight, [])
        except NotSupported as error:
            caught = error
    assert caught is not None and "does not round to nearest even" in caught.message
    assert "set_flush_denormal" in caught.remedy


def test_probe_tells_flushing_of_results_and_of_inputs(monkeypatch: pytest.MonkeyPatch) -> None:
    floatmode.check_float_mode()
    flushed = floatmode._NARROW.copy()
    flushed[0] = 0
    monkeypatch.setattr(floatmode, "_NARROW", flushed)
    with pytest.raises(NotSupported, match="flushes subnormals"):
        floatmode.check_float_mode()
