"""Adapters → one adapter, on their factors: sum, average, methods on elements and subspaces."""

from __future__ import annotations

from adapterhub.composing.comparing import compare
from adapterhub.composing.comparison import Comparison
from adapterhub.composing.inputs import Input, input_of
from adapterhub.composing.plan import Options, Plan, plan
from adapterhub.composing.result import Report, adapter_of, report, write, write_into
from adapterhub.composing.run import Composed, run
from adapterhub.composing.verbs import Composition, compose

__all__ = [
    "Comparison",
    "Composed",
    "Composition",
    "Input",
    "Options",
    "Plan",
    "Report",
    "adapter_of",
    "compare",
    "compose",
    "input_of",
    "plan",
    "report",
    "run",
    "write",
    "write_into",
]
