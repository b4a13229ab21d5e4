"""Adapters → one adapter, on their factors: sum, average, methods on elements and subspaces.

verbs                           compose, for people
recipe, cases                   a composition as YAML; values that hang on the module
inputs, sites, wholes           what is composed: adapters, where their deltas meet, the rest
plan, run, tensorwise           checked first; one module at a time; what has no factors
methods/                        how deltas become one: a table, and a file for each family
factored, sketch                linear algebra on factors, and on dense matrices by a sketch
blocks, window, blas, stopping  rows at a time, modules at a time, cores, and an early end
building, result, writing       a LoRA in PEFT's format, its report and lineage, its files
resizing, converting, sizing    another rank; other methods as LoRAs
extracting/                     what a fine-tuning changed
comparing/                      how alike adapters are, and the picture of it
"""

from __future__ import annotations

from adapterhub.composing.comparing.comparison import Comparison
from adapterhub.composing.comparing.verb import compare
from adapterhub.composing.extracting.verb import Extracted, Extraction, extract
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
