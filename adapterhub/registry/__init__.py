"""The registry: what people add adapters to, and find them in again."""

from adapterhub.registry.adding import Added
from adapterhub.registry.core import Loaded, Registry
from adapterhub.registry.diffs import Difference
from adapterhub.registry.inspection import Inspection
from adapterhub.registry.runs import Taken

__all__ = ["Added", "Difference", "Inspection", "Loaded", "Registry", "Taken"]
