"""Adapters on live transformers models. What it offers is imported when it is first used."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from adapterhub.runtime.attached import RESTORE, Attached, attach
    from adapterhub.runtime.loading import load
    from adapterhub.runtime.planning import How

__all__ = ["RESTORE", "Attached", "How", "attach", "load"]

_PLACES = {"How": "planning", "load": "loading"}


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module 'adapterhub.runtime' has no attribute {name!r}")
    place = _PLACES.get(name, "attached")
    return getattr(import_module(f"adapterhub.runtime.{place}"), name)
