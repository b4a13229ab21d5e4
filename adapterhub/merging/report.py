"""What a merge says of itself: `adapterhub.json` (deterministic) and MergeReport (for people)."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from adapterhub import digest
from adapterhub.merging.engine import Written
from adapterhub.merging.work import Fate, MergePlan, Options, Source

_EXPERT = re.compile(r"\[\d+\]$")


@dataclass(frozen=True)
class MergeReport:
    """`actions` counts output tensors by what was done: copy, merge, replace, add, cast.

    `verified`: whether every adapter recorded this base's weights_root. `fates` maps each
    adapter's tensors to what became of them.
    """

    out: str
    model_class: str | None
    weights_root: str
    structure_root: str
    base: dict[str, Any]
    adapters: list[dict[str, Any]]
    actions: dict[str, int]
    left_out: list[str]
    verified: bool
    notes: list[str]
    bytes_written: int
    reproducible: bool
    kernel: str
    seconds: float

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def document(plan: MergePlan, written: Written, base_root: str) -> dict[str, Any]:
    """adapterhub.json of a merged directory, schema `merge`: inputs, fates, roots; no times."""
    idle = _idle(plan, written)
    return {
        "schema": 1,
        "kind": "merge",
        "base": {
            "weights_root": base_root,
            "structure_root": plan.base.structure_root,
            "config_digest": plan.base.config_digest,
            "tokenizer_digest": plan.base.tokenizer_digest,
        },
        "adapters": [_source(source) for source in plan.sources],
        "options": {
            "dtype": plan.options.dtype,
            "max_shard_bytes": plan.options.max_shard_bytes,
            "base_is_initialised": plan.options.base_is_initialised,
        },
        "model_class": plan.model_class,
        "fates": [
            {"adapter": fate.source, "tensor": fate.tensor, "fate": _told(fate, idle)}
            for fate in plan.fates
        ],
        "actions": dict(sorted(actions(plan).items())),
        "left_out": list(plan.left_out),
        "weights_root": weights_root(plan, written),
        "structure_root": digest.structure_root((w.name, w.shape) for w in plan.works.values()),
        "tensors": {
            work.name: {
                "dtype": work.dtype,
                "shape": list(work.shape),
                "digest": digest.text(written.digests[work.name]),
                "action": work.action,
            }
            for work in sorted(plan.works.values(), key=lambda work: work.name)
        },
        "files": written.files,
        "reproducible": plan.exact,
    }


def _told(fate: Fate, idle: set[tuple[int, str]]) -> str:
    """The fate, and whether the values turned out to change nothing."""
    module = fate.tensor.rpartition(".")[0]
    nothing = (fate.source, module) in idle
    return f"{fate.fate}: lora_B is all zero, so nothing changed" if nothing else fate.fate


def _idle(plan: MergePlan, written: Written) -> set[tuple[int, str]]:
    """(source, key) of the pairs that change nothing anywhere; those of experts as one."""
    everywhere: dict[tuple[int, str], bool] = {}
    for work in plan.works.values():
        for term in work.terms:
            if term.a is not None:
                pair = (term.source, _EXPERT.sub("", term.key))
                still = (work.name, term.source, term.key) in written.idle
                everywhere[pair] = everywhere.get(pair, True) and still
    return {pair for pair, nothing in everywhere.items() if nothing}


def _idle_notes(plan: MergePlan, written: Written) -> list[str]:
    counts = Counter(source for source, _ in _idle(plan, written))
    return [
        f"{plan.sources[source].name} changes nothing in {count} of its modules: "
        "their lora_B is all zero"
        for source, count in sorted(counts.items())
    ]


def _resume_notes(written: Written, count: int) -> list[str]:
    if written.resumed:
        return [f"{written.resumed} of {count} files were whole already"]
    if written.discarded:
        return [
            f"an interrupted merge had left {written.discarded} whole files there, which were made "
            "anew; --resume would have kept them"
        ]
    return []


def to_bytes(value: dict[str, Any]) -> bytes:
    return (json.dumps(value, indent=1, ensure_ascii=False) + "\n").encode("utf-8")


def options_of(report: Mapping[str, Any]) -> Options:
    """The options with which the merge of an adapterhub.json is made again, on that very base."""
    return Options(**report["options"], force_base=True)


def _source(source: Source) -> dict[str, Any]:
    return {
        "digest": source.digest,
        "adapter_root": source.adapter_root,
        "method": source.adapter.method,
        "weight": source.weight,
        "declared_base": source.adapter.base.name,
        "recorded_base": source.base_weights_root,
        "part": source.part,
    }


def actions(plan: MergePlan) -> Counter[str]:
    return Counter(work.action for work in plan.works.values())


def weights_root(plan: MergePlan, written: Written) -> str:
    return digest.weights_root(
        (work.name, work.dtype, work.shape, written.digests[work.name])
        for work in plan.works.values()
    )


def report(
    plan: MergePlan,
    out: Path,
    made: dict[str, Any],
    written: Written,
    kernel: str,
    seconds: float,
) -> MergeReport:
    recorded = [source.base_weights_root for source in plan.sources]
    return MergeReport(
        out=str(out),
        model_class=plan.model_class,
        weights_root=made["weights_root"],
        structure_root=made["structure_root"],
        base={"path": str(plan.base.path), **made["base"]},
        adapters=[{"name": s.name, **_source(s)} for s in plan.sources],
        actions=made["actions"],
        left_out=list(plan.left_out),
        verified=all(root == made["base"]["weights_root"] for root in recorded),
        notes=[
            *plan.notes,
            *_idle_notes(plan, written),
            *_resume_notes(written, len(plan.shards)),
        ],
        bytes_written=plan.write_bytes,
        reproducible=made["reproducible"],
        kernel=kernel,
        seconds=seconds,
    )
