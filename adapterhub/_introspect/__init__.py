"""Asks transformers what an architecture looks like, on the meta device: names, never weights.

`describe` returns the document that `registry/architectures/<model_type>.json` holds (schema
`schemas/architecture.json`). It is called by `tools/make_architectures.py`, and by
`adapterhub.catalogue` for a model type that is not shipped. Importing this package is cheap;
calling `describe` imports torch and transformers.
"""

from adapterhub._introspect.describing import TASKS, Overrides, describe
from adapterhub._introspect.ordering import ordered
from adapterhub._introspect.saving import Module, kind_of, patterned

__all__ = ["TASKS", "Module", "Overrides", "describe", "kind_of", "ordered", "patterned"]
