"""From composed modules to a LoRA adapter in PEFT's format, its lineage, and a report."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from adapterhub.adapter import REPLACE, Adapter, BaseClaim
from adapterhub.composing import writing
from adapterhub.composing.building import Parts, exactly, lora
from adapterhub.composing.cases import plain
from adapterhub.composing.inputs import Input
from adapterhub.composing.plan import Plan
from adapterhub.composing.run import Composed
from adapterhub.composing.writing import Artefact
from adapterhub.registry import manifests
from adapterhub.registry.experts import swapped_in_and_out

_LOSS = 1e-3  # of the norm: less is the rounding of factors


@dataclass(frozen=True)
class ModuleReport:
    """`error`: ‖Δ − truncated‖ / ‖Δ‖, None where nothing was truncated."""

    module: str
    inputs: int
    rank: int
    error: float | None

    @classmethod
    def of(cls, one: Composed, *, inputs: int) -> ModuleReport:
        return cls(one.site.name, inputs, one.rank, one.cut.error if one.cut else None)


@dataclass(frozen=True)
class Report:
    """`saved`: tensors that are kept whole. `error`: of all modules together. `reproducible`: the
    same digest on every machine. A weight of `inputs` is a list of cases where it hangs on the
    module."""

    method: str
    inputs: list[dict[str, Any]]
    parameters: dict[str, Any]
    modules: list[ModuleReport]
    saved: list[str]
    error: float | None
    reproducible: bool
    notes: list[str]

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def adapter_of(plan: Plan, composed: Sequence[Composed]) -> Adapter:
    """A LoRA whose config gives each module its rank and scale."""
    first = plan.inputs[0]
    return lora(
        Parts(
            composed=composed,
            wholes=plan.wholes.tensors,
            tokens=plan.wholes.tokens,
            base=BaseClaim(first.base_name, _common_revision(plan.inputs)),
            fields=_fields(plan, composed),
            task=plan.wholes.task,
            labels=plan.wholes.labels,
        )
    )


def _common_revision(inputs: Sequence[Input]) -> str | None:
    found = {each.adapter.base.revision for each in inputs}
    return found.pop() if len(found) == 1 else None


# --- the config -------------------------------------------------------------------------------


def _fields(plan: Plan, composed: Sequence[Composed]) -> dict[str, Any]:
    """What all inputs say alike is kept."""
    configs = [each.adapter.config for each in plan.inputs]
    return {
        "bias": next((c["bias"] for c in configs if c.get("bias", "none") != "none"), "none"),
        "fan_in_fan_out": any(config.get("fan_in_fan_out") for config in configs),
        "target_modules": _targets(plan, composed),
        "target_parameters": _union(configs, "target_parameters"),
        "modules_to_save": _union(configs, "modules_to_save"),
        **_version(configs),
    }


def _targets(plan: Plan, composed: Sequence[Composed]) -> list[str] | str:
    """The names that the inputs' configs give, where those say no more; else a pattern of all."""
    modules = sorted({one.site.module for one in composed if one.site.parameter is None})
    configs = [each.adapter.config for each in plan.inputs]
    narrowing = ("exclude_modules", "layers_to_transform", "layers_pattern")
    plain = all(
        isinstance(config.get("target_modules"), list)
        and all(config.get(field) in (None, [], "") for field in narrowing)  # layer 0 is one
        for config in configs
    )
    if not plain:
        return exactly(modules) if modules else []
    return sorted({str(name) for config in configs for name in config["target_modules"]})


def _union(configs: Sequence[Mapping[str, Any]], field: str) -> list[str] | None:
    found = {str(name) for config in configs for name in config.get(field) or ()}
    return sorted(found) or None


def _version(configs: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """What target_parameters mean hangs on the version of peft that wrote them."""
    found = [config for config in configs if config.get("target_parameters")]
    told = {swapped_in_and_out(config) for config in found}
    return {"peft_version": found[0]["peft_version"]} if len(told) == 1 and None not in told else {}


# --- lineage and report -----------------------------------------------------------------------


def lineage(plan: Plan) -> dict[str, Any]:
    """What a manifest says of how this version was made; the same on every machine."""
    options = plan.options
    parameters = {
        "method": plan.method.name,
        "parameters": plain(plan.parameters),
        **plain({"rank": options.rank, "energy": options.energy}),
        "whole": options.whole,
        "force_base": options.force_base,
        "reproducible": plan.exact,
    }
    if options.weights:
        weights = {str(number): value for number, value in options.weights.items()}
        parameters["weights"] = plain(weights)
    if plan.method.seeded:
        parameters["seed"] = options.seed
    return {
        "operation": "compose",
        "inputs": [_input(each) for each in plan.inputs],
        "parameters": parameters,
    }


def _input(source: Input) -> dict[str, Any]:
    known = {"digest": source.digest} if source.digest else {}
    return {**known, "weights_root": source.root, "role": "adapter", "weight": source.weight}


def report(plan: Plan, composed: Sequence[Composed]) -> Report:
    """What was made of what; `composed` may be () where nothing has factors."""
    weights = plain({str(n): weight for n, weight in plan.options.weights.items()})
    error = total_error(composed)
    return Report(
        method=plan.method.name,
        inputs=[
            {"name": i.name, "weight": weights.get(str(n), i.weight), "digest": i.digest}
            for n, i in enumerate(plan.inputs)
        ],
        parameters=plain(plan.parameters),
        modules=[ModuleReport.of(one, inputs=len(one.site.terms)) for one in composed],
        saved=[f"{module}.{role.removeprefix(REPLACE)}" for module, role in plan.wholes.tensors],
        error=error,
        reproducible=plan.exact,
        notes=[*plan.notes, *_cut_unasked(plan, error)],
    )


def _cut_unasked(plan: Plan, error: float | None) -> Iterator[str]:
    """What looks at elements makes matrices of full rank, which a LoRA cannot hold."""
    asked = plan.method.largest_rank or (plan.options.rank, plan.options.energy) != (None, None)
    if not asked and (error or 0.0) > _LOSS:
        yield (
            f"what {plan.method.name} makes has no low rank, and was cut to the ranks of the "
            "adapters added up; --rank or --energy set another"
        )


def total_error(composed: Sequence[Composed]) -> float | None:
    """That of all modules together; None where nothing was truncated."""
    cuts = [one.cut for one in composed if one.cut]
    total = math.fsum(cut.total for cut in cuts)
    lost = math.fsum(max(0.0, cut.total - cut.energy) for cut in cuts)
    return (math.sqrt(lost / total) if total else 0.0) if cuts else None


def artefact(plan: Plan, adapter: Adapter) -> Artefact:
    """The adapter with what its manifest says beside it."""
    return Artefact(adapter, _base_record(plan), lineage(plan))


def write(plan: Plan, adapter: Adapter, out: Path) -> None:
    """See `writing.write`."""
    writing.write(artefact(plan, adapter), out)


def _base_record(plan: Plan) -> manifests.BaseRecord:
    """That of the inputs, as far as they say the same."""
    records = [dict(each.base or {}) for each in plan.inputs]
    fields = ("structure_root", "weights_root", "quantization")
    common = {
        field: records[0].get(field)
        for field in fields
        if len({record.get(field) for record in records}) == 1
    }
    return manifests.BaseRecord(plan.inputs[0].base_name, _common_revision(plan.inputs), **common)
