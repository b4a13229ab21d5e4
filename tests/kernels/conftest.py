"""Every test of this folder runs once for each path that this machine can compute by, or for those
that its class names in `paths`.

Where the processor has no AVX-512, that path's code runs on `emulated_avx512.h`, if a compiler is
there: this shows that the code is right, though not what a compiler makes of it.
"""

from __future__ import annotations

import fcntl
import hashlib
import platform
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

from adapterhub.errors import NotSupported
from adapterhub.kernels import build, library

EMULATED = "avx512-emulated"
EMULATION = Path(__file__).with_name("emulated_avx512.h")


FLAGS = ("-O1", "-Wno-psabi", "-include", str(EMULATION))


@cache
def can_emulate() -> bool:
    try:
        build.find_compiler()
    except build.BuildError:
        return False
    return platform.machine() in ("x86_64", "AMD64") and "avx2" in native()


@pytest.fixture(scope="session")
def emulated(pytestconfig: pytest.Config) -> Path | None:
    """Compiled once for all processes of a run, and again only when a source has changed.

    None where the compiler refuses it.
    """
    folder = pytestconfig.cache.mkdir("kernel")
    digest = hashlib.sha256(repr((build.find_compiler(), build.FLAGS, FLAGS)).encode())
    for source in (*sorted(build.SOURCE.parent.glob("*.[ch]")), EMULATION):
        digest.update(source.read_bytes())
    target = folder / f"emulated-{digest.hexdigest()[:16]}.so"
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not target.exists():
            try:
                build.build(target, FLAGS)
            except build.BuildError:
                return None
    return target


@pytest.fixture(scope="session")
def libraries(request: pytest.FixtureRequest) -> dict[str, Path]:
    """The library that each path of this machine is of."""
    found = dict.fromkeys(native(), library.LIBRARY)
    if "avx512" not in found and can_emulate():
        file = request.getfixturevalue("emulated")
        return found if file is None else found | {EMULATED: file}
    return found


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
    if paths == native() and "avx512" not in paths and can_emulate():
        paths += (EMULATED,)
    metafunc.parametrize("path", paths, indirect=True)


@pytest.fixture(autouse=True)
def path(request: pytest.FixtureRequest) -> Iterator[str]:
    """Its name; the environment's switch is set to it meanwhile."""
    name: str = request.param
    with pytest.MonkeyPatch.context() as patch:
        if name == EMULATED:
            file = request.getfixturevalue("emulated")
            if file is None:
                pytest.skip("the compiler refuses the emulation of AVX-512")
            patch.setattr(library, "LIBRARY", file)
        patch.setenv(library.SWITCH, name.removesuffix("-emulated"))
        yield name
