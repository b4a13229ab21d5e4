"""Adapters on live transformers models."""

from adapterhub.runtime.load import load

__all__ = ["load"]
