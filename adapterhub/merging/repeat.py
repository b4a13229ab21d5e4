"""Merges again without writing, and compares with what a merged directory says of itself."""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping
from contextlib import closing
from typing import Any

from adapterhub import digest
from adapterhub.base import LeafCache
from adapterhub.merging.engine import Collector
from adapterhub.merging.stream import stream
from adapterhub.merging.work import MergePlan

Progress = Callable[[int], None]


def repeat(
    plan: MergePlan,
    report: Mapping[str, Any],
    *,
    cache: LeafCache | None = None,
    progress: Progress | None = None,
    threads: int | None = None,
) -> list[str]:
    """In what the plan's result differs from `report`, an adapterhub.json; [] if in nothing.

    Tensors are compared in the order of the files, and the first that differs ends the comparison:
    it is named in the one sentence returned. `progress` is told of bytes done, those of tensors
    that are only copied included, whose digests are the base's. Raises what a merge raises.
    """
    said: Mapping[str, Mapping[str, Any]] = report["tensors"]
    missing, more = said.keys() - plan.works.keys(), plan.works.keys() - said.keys()
    if missing or more:
        name = sorted(missing or more)[0]
        where = "in the report and not in the repeated merge" if missing else "not in the report"
        return [f"tensor {name} is {where}"]
    collector = Collector(plan, plan.base.digests(cache))
    with closing(_digests(plan, collector, progress, threads)) as found:
        for name, value in found:
            expected = said[name]["digest"]
            if digest.text(value) != expected:
                whose = plan.works[name].computed_by
                allowed = f"; {whose} computed it, to the same bits on one machine only"
                return [
                    f"tensor {name} is {expected} in the report, and {digest.text(value)} when "
                    f"merged again{allowed if whose else ''}"
                ]
    return []


def _digests(
    plan: MergePlan, collector: Collector, progress: Progress | None, threads: int | None
) -> Generator[tuple[str, bytes]]:
    """Name and D of every tensor, shard by shard."""
    with closing(stream(plan, plan.shards, None, threads)) as found:
        for done in found:
            collector.take(done)
            if progress and done.range:
                progress(done.range.nbytes)
            if done.range is None:
                for spec in done.shard.specs:
                    yield spec.name, collector.digest_of(spec.name)
