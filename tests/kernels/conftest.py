"""Every test of this folder runs once for each path that this machine can compute by."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from adapterhub.errors import NotSupported
from adapterhub.kernels import library


def usable() -> list[str]:
    found = ["numpy"]
    for name in library.PATHS:
        try:
            library._choose(name, library.LIBRARY)
        except NotSupported:
            continue
        found.append(name)
    return found


USABLE = usable()


@pytest.fixture(params=USABLE, autouse=True)
def path(request: pytest.FixtureRequest) -> Iterator[str]:
    before = os.environ.get(library.SWITCH)
    os.environ[library.SWITCH] = request.param
    yield request.param
    if before is None:
        del os.environ[library.SWITCH]
    else:
        os.environ[library.SWITCH] = before
