"""Adapters on live transformers models."""

from adapterhub.runtime.attach import RESTORE, Attached, attach
from adapterhub.runtime.load import load
from adapterhub.runtime.planning import How

__all__ = ["RESTORE", "Attached", "How", "attach", "load"]
