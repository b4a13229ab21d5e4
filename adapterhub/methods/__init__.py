"""What an adapter means: one row per method in `TABLE`, which names its schema and its file."""

from __future__ import annotations

from adapterhub.methods.computed import Computed, is_exact
from adapterhub.methods.interface import Implementation, Ranks
from adapterhub.methods.meaning import (
    BiasDelta,
    Delta,
    LowRank,
    Meaning,
    Part,
    Replacement,
    Shaped,
    Surroundings,
    TokenRows,
    Transform,
)
from adapterhub.methods.row import Mathematics, Method, Variant
from adapterhub.methods.signature import Signature
from adapterhub.methods.table import TABLE, method, method_of

__all__ = [
    "TABLE",
    "BiasDelta",
    "Computed",
    "Delta",
    "Implementation",
    "LowRank",
    "Mathematics",
    "Meaning",
    "Method",
    "Part",
    "Ranks",
    "Replacement",
    "Shaped",
    "Signature",
    "Surroundings",
    "TokenRows",
    "Transform",
    "Variant",
    "is_exact",
    "method",
    "method_of",
]
