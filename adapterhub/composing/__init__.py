"""Adapters → one adapter, on their factors: sum, average, methods on elements and subspaces."""

from __future__ import annotations

from adapterhub.composing.comparing import compare
from adapterhub.composing.comparison import Comparison
from adapterhub.composing.extracting import Extracted, Extraction, extract
from adapterhub.composing.inputs import Input, input_of
from adapterhub.composing.plan import Options, Plan, plan
from adapterhub.composing.resizing import Resized, resize
from adapterhub.composing.result import Report, adapter_of, report, write
from adapterhub.composing.run import Composed, run
from adapterhub.composing.verbs import Composition, compose

__all__ = [
    "Comparison",
    "Composed",
    "Composition",
    "Extracted",
    "Extraction",
    "Input",
    "Options",
    "Plan",
    "Report",
    "Resized",
    "adapter_of",
    "compare",
    "compose",
    "extract",
    "input_of",
    "plan",
    "report",
    "resize",
    "run",
    "write",
]
