"""The registry: what people add adapters to, and find them in again."""

from adapterhub.registry.adding import Added
from adapterhub.registry.core import Registry
from adapterhub.registry.diffs import Difference
from adapterhub.registry.identify import Identification
from adapterhub.registry.inspection import Inspection
from adapterhub.registry.loading import Loaded
from adapterhub.registry.runs import Taken
from adapterhub.store import Filters

__all__ = [
    "Added",
    "Difference",
    "Filters",
    "Identification",
    "Inspection",
    "Loaded",
    "Registry",
    "Taken",
]
