"""Merging: a pure plan, and an engine that runs it in a small fixed amount of memory."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

from adapterhub import kernels
from adapterhub.base import LeafCache
from adapterhub.errors import BaseMismatch
from adapterhub.merging import engine
from adapterhub.merging import report as reports
from adapterhub.merging.engine import Written
from adapterhub.merging.output import check_output
from adapterhub.merging.plan import MergePlan, Options, Source, plan
from adapterhub.merging.report import MergeReport
from adapterhub.merging.verify import differences, read_report

__all__ = [
    "MergePlan",
    "MergeReport",
    "Options",
    "Source",
    "check_base",
    "differences",
    "plan",
    "read_report",
    "run",
]

Progress = Callable[[int], None]


def check_base(the_plan: MergePlan, base_root: str) -> None:
    """The wrong-base rule: a recorded weights_root must be that of the base at hand.

    Raises BaseMismatch, unless the plan's options force the base.
    """
    wrong = [
        f"{source.name} was recorded with {source.base_weights_root}"
        for source in the_plan.sources
        if source.base_weights_root not in (None, base_root)
    ]
    if wrong and not the_plan.options.force_base:
        raise BaseMismatch(
            f"{the_plan.base.path} is not the recorded base; its weights_root is {base_root}",
            details=wrong,
            remedy="give the recorded base (adapterhub base list), or --force-base to merge anyway",
        )


def run(
    the_plan: MergePlan,
    out: Path,
    *,
    cache: LeafCache | None = None,
    hashing: Progress | None = None,
    writing: Progress | None = None,
) -> MergeReport:
    """Run a plan. `hashing` and `writing` are told of bytes done, of the base and of the output.

    Raises BaseMismatch before anything is written, OutputError and what the values refuse with.
    """
    started = time.perf_counter()
    check_output(out)
    base_digests = the_plan.base.digests(cache, hashing)
    base_root = the_plan.base.root_of(base_digests)
    check_base(the_plan, base_root)

    def describe(written: Written) -> bytes:
        return reports.to_bytes(reports.document(the_plan, written, base_root))

    written = engine.run(
        the_plan, out, base_digests=base_digests, describe=describe, progress=writing
    )
    made = reports.document(the_plan, written, base_root)
    seconds = time.perf_counter() - started
    return reports.report(the_plan, out, made, kernels.name, seconds)
