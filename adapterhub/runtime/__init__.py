"""Adapters on live transformers models."""

from adapterhub.runtime.attach import RESTORE, Attached, attach
from adapterhub.runtime.load import load

__all__ = ["RESTORE", "Attached", "attach", "load"]
