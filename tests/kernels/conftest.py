"""Every test of this folder runs once for each path that this machine can compute by, or for those
that its class names in `paths`.

Where the processor has no AVX-512, that path's code runs on `emulated_avx512.h`, if a compiler is
there: this shows that the code is right, though not what a compiler makes of it.
"""

from __future__ import annotations

import platform
import tempfile
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

from adapterhub.errors import NotSupported
from adapterhub.kernels import build, library

EMULATED = "avx512-emulated"
EMULATION = Path(__file__).with_name("emulated_avx512.h")


@cache
def folder() -> tempfile.TemporaryDirectory[str]:
    return tempfile.TemporaryDirectory(prefix="adapterhub-kernel-")


@cache
def emulated() -> Path | None:
    if platform.machine() not in ("x86_64", "AMD64") or "avx2" not in native():
        return None
    target = Path(folder().name, "emulated.so")
    try:
        return build.build(target, ["-O1", "-Wno-psabi", "-include", str(EMULATION)])
    except build.BuildError:
        return None


@cache
def native() -> tuple[str, ...]:
    found = ["numpy"]
    for name in library.PATHS:
        try:
            library._choose(name, library.LIBRARY)
        except NotSupported:
            continue
        found.append(name)
    return tuple(found)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    paths = getattr(metafunc.cls, "paths", native())
    if paths == native() and "avx512" not in paths and emulated() is not None:
        paths += (EMULATED,)
    metafunc.parametrize("path", paths, indirect=True)


@pytest.fixture(autouse=True)
def path(request: pytest.FixtureRequest) -> Iterator[str]:
    """Its name; the environment's switch is set to it meanwhile."""
    name: str = request.param
    with pytest.MonkeyPatch.context() as patch:
        file = emulated() if name == EMULATED else None
        if file is not None:
            patch.setattr(library, "LIBRARY", file)
        patch.setenv(library.SWITCH, name.removesuffix("-emulated"))
        yield name
