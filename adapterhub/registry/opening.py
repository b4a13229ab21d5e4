"""`registry=None` of a verb: the user's own, opened for as long as the verb takes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from adapterhub.registry.core import Registry


@contextmanager
def opened(registry: Registry | None) -> Iterator[Registry]:
    """The registry that was given, which stays open; or the default one, closed afterwards."""
    if registry is not None:
        yield registry
        return
    with Registry() as own:
        yield own
