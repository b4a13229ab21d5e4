"""Merging: a pure plan, and an engine that runs it in a small fixed amount of memory."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from adapterhub import digest, kernels
from adapterhub.base import LeafCache
from adapterhub.errors import BaseMismatch
from adapterhub.formats.roots import adapter_root
from adapterhub.merging import engine
from adapterhub.merging import report as reports
from adapterhub.merging.engine import Written
from adapterhub.merging.output import check_output
from adapterhub.merging.plan import MergePlan, Options, Source, plan
from adapterhub.merging.repeat import repeat
from adapterhub.merging.report import MergeReport, options_of
from adapterhub.merging.verify import differences, read_report

__all__ = [
    "MergePlan",
    "MergeReport",
    "Options",
    "Source",
    "check_base",
    "differences",
    "options_of",
    "plan",
    "read_report",
    "repeat",
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
    resume: bool = False,
    threads: int | None = None,
) -> MergeReport:
    """Run a plan. `hashing` and `writing` are told of bytes done, of the base and of the output.

    `resume`: go on where an interrupted merge of the same plan was; what it left is checked first.
    Raises BaseMismatch before anything is written, OutputError and what the values refuse with.
    """
    started = time.perf_counter()
    check_output(out)
    base_digests = the_plan.base.digests(cache, hashing)
    base_root = the_plan.base.root_of(base_digests)
    check_base(the_plan, base_root)
    the_plan = with_roots(the_plan)

    def describe(written: Written) -> bytes:
        return reports.to_bytes(reports.document(the_plan, written, base_root))

    written = engine.run(
        the_plan,
        out,
        key=_key(the_plan, base_root),
        base_digests=base_digests,
        describe=describe,
        progress=writing,
        resume=resume,
        threads=threads,
    )
    made = reports.document(the_plan, written, base_root)
    seconds = time.perf_counter() - started
    return reports.report(the_plan, out, made, written, kernels.name, seconds)


def with_roots(the_plan: MergePlan) -> MergePlan:
    """The plan with the root of every adapter; those of the registry have it recorded."""
    sources = tuple(
        source
        if source.adapter_root
        else replace(source, adapter_root=adapter_root(source.adapter))
        for source in the_plan.sources
    )
    return replace(the_plan, sources=sources)


def _key(the_plan: MergePlan, base_root: str) -> str:
    """Tells one merge from another, so that none is resumed with the inputs of another."""
    said: dict[str, Any] = {
        "base": [base_root, the_plan.base.config_digest],
        "adapters": [[s.adapter_root, dict(s.adapter.config), s.weight] for s in the_plan.sources],
        "shards": [digest.of_bytes(shard.header) for shard in the_plan.shards],
        "actions": [[work.name, work.action] for work in the_plan.works.values()],
    }
    return digest.of_bytes(json.dumps(said, sort_keys=True, default=str).encode("ascii"))
