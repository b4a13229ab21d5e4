"""From composed modules to a LoRA adapter in PEFT's format, its lineage, and a report."""

from __future__ import annotations

import math
import re
import shutil
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

from adapterhub import formats
from adapterhub.adapter import Adapter, BaseClaim
from adapterhub.composing.cases import plain
from adapterhub.composing.inputs import Input
from adapterhub.composing.plan import Plan
from adapterhub.composing.run import Composed
from adapterhub.errors import OutputError
from adapterhub.methods.lora_pairs import MAGNITUDE
from adapterhub.registry import manifests
from adapterhub.tensorfile import ArrayTensor, Tensor

TOKEN_ROWS = "token_rows"


@dataclass(frozen=True)
class ModuleReport:
    """`error`: ‖Δ − truncated‖ / ‖Δ‖, None where nothing was truncated."""

    module: str
    inputs: int
    rank: int
    error: float | None


@dataclass(frozen=True)
class Report:
    """`error`: of all modules together. `reproducible`: the same digest on every machine."""

    method: str
    inputs: list[dict[str, Any]]
    parameters: dict[str, Any]
    modules: list[ModuleReport]
    error: float | None
    reproducible: bool
    notes: list[str]

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def adapter_of(plan: Plan, composed: Sequence[Composed]) -> Adapter:
    """A LoRA whose config gives each module its rank and scale."""
    modules: dict[str, dict[str, Tensor]] = {}
    for one in composed:
        roles = modules.setdefault(one.site.module, {})
        roles[one.site.roles[0]] = ArrayTensor(one.a)
        roles[one.site.roles[1]] = ArrayTensor(one.b)
        if one.bias is not None:
            roles["lora_B.bias"] = ArrayTensor(one.bias)
        if magnitude := _magnitude(one):
            roles[MAGNITUDE] = magnitude
    for (module, role), tensor in plan.wholes.tensors.items():
        modules.setdefault(module, {})[role] = tensor
    first = plan.inputs[0]
    return Adapter(
        method="lora",
        format="peft",
        config=_config(plan, composed),
        modules=modules,
        base=BaseClaim(first.base_name, _common_revision(plan.inputs)),
        task=plan.wholes.task,
        labels=plan.wholes.labels,
    )


def _magnitude(one: Composed) -> Tensor | None:
    terms = one.site.terms
    return terms[0].part.magnitude if len(terms) == 1 else None


def _common_revision(inputs: Sequence[Input]) -> str | None:
    found = {each.adapter.base.revision for each in inputs}
    return found.pop() if len(found) == 1 else None


# --- the config -------------------------------------------------------------------------------


def _config(plan: Plan, composed: Sequence[Composed]) -> dict[str, Any]:
    """PEFT's fields, in PEFT's spelling; what all inputs say alike is kept."""
    configs = [each.adapter.config for each in plan.inputs]
    rank = Counter(one.rank for one in composed).most_common(1)[0][0] if composed else 8
    alphas = {one.site.name: one.scale * one.rank for one in composed}
    usual = [alphas[one.site.name] for one in composed if one.rank == rank]
    alpha = Counter(usual).most_common(1)[0][0] if usual else rank
    return {
        "peft_type": "LORA",
        "auto_mapping": None,
        "inference_mode": True,
        "r": rank,
        "lora_alpha": _whole_number(alpha),
        "rank_pattern": {_key(o.site.name): o.rank for o in composed if o.rank != rank},
        "alpha_pattern": {
            _key(name): _whole_number(value) for name, value in alphas.items() if value != alpha
        },
        "lora_dropout": 0.0,
        "bias": next((c["bias"] for c in configs if c.get("bias", "none") != "none"), "none"),
        "fan_in_fan_out": any(config.get("fan_in_fan_out") for config in configs),
        "use_rslora": False,
        "use_dora": any(_magnitude(one) for one in composed),
        "lora_bias": any(one.bias is not None for one in composed),
        "init_lora_weights": True,
        "target_modules": _targets(plan, composed),
        "target_parameters": _union(configs, "target_parameters"),
        "modules_to_save": _union(configs, "modules_to_save"),
        "trainable_token_indices": _tokens(plan),
        **_version(configs),
    }


def _whole_number(value: float) -> float | int:
    return int(value) if value == int(value) else value


def _key(name: str) -> str:
    """A pattern that PEFT matches with this module alone."""
    return "^" + re.escape(name)


def _targets(plan: Plan, composed: Sequence[Composed]) -> list[str]:
    """The names that the inputs' configs give, where those say no more; else every module."""
    modules = sorted({one.site.module for one in composed if one.site.parameter is None})
    configs = [each.adapter.config for each in plan.inputs]
    narrowing = ("exclude_modules", "layers_to_transform", "layers_pattern")
    plain = all(
        isinstance(config.get("target_modules"), list)
        and not any(config.get(field) for field in narrowing)
        for config in configs
    )
    if not plain:
        return modules
    return sorted({str(name) for config in configs for name in config["target_modules"]})


def _union(configs: Sequence[Mapping[str, Any]], field: str) -> list[str] | None:
    found = {str(name) for config in configs for name in config.get(field) or ()}
    return sorted(found) or None


def _tokens(plan: Plan) -> dict[str, list[int]] | None:
    found = {module: list(tokens) for module, tokens in sorted(plan.wholes.tokens.items())}
    return found or None


def _version(configs: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """What target_parameters mean hangs on the version of peft that wrote them."""
    found = {config.get("peft_version") for config in configs if config.get("target_parameters")}
    return {"peft_version": found.pop()} if len(found) == 1 and None not in found else {}


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
    cuts = [one.cut for one in composed if one.cut]
    total = math.fsum(cut.total for cut in cuts)
    lost = math.fsum(max(0.0, cut.total - cut.energy) for cut in cuts)
    return Report(
        method=plan.method.name,
        inputs=[
            {"name": each.name, "weight": each.weight, "digest": each.digest}
            for each in plan.inputs
        ],
        parameters=plain(plan.parameters),
        modules=[
            ModuleReport(
                one.site.name, len(one.site.terms), one.rank, one.cut.error if one.cut else None
            )
            for one in composed
        ],
        error=(math.sqrt(lost / total) if total else 0.0) if cuts else None,
        reproducible=plan.exact,
        notes=list(plan.notes),
    )


def check_out(out: Path) -> None:
    """Raises OutputError where there is something already."""
    if out.is_symlink() or (out.exists() and (not out.is_dir() or any(out.iterdir()))):
        raise OutputError(f"{out} is not empty", remedy="choose a new directory")


def write(plan: Plan, adapter: Adapter, out: Path) -> None:
    """A PEFT directory with its manifest as adapterhub.json; all of it appears at once.

    Raises OutputError where `out` exists and is not empty, or cannot be written.
    """
    check_out(out)
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        partial = Path(mkdtemp(prefix=f".{out.name}.", dir=out.parent))
    except OSError as error:
        raise OutputError(f"{out} cannot be written: {error.strerror}") from error
    try:
        write_into(plan, adapter, partial)
        partial.chmod(0o755)
        partial.replace(out)
    except OSError as error:
        raise OutputError(f"{out} cannot be written: {error.strerror}") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def write_into(plan: Plan, adapter: Adapter, directory: Path) -> None:
    """The files of the adapter and adapterhub.json, into an empty directory."""
    from adapterhub import digest
    from adapterhub.formats.roots import adapter_root
    from adapterhub.registry import checkout

    formats.write(adapter, directory, to=adapter.format)
    files = []
    for path in sorted(directory.iterdir()):
        size = path.stat().st_size
        files.append(manifests.StoredFile(path.name, size, digest.of_file(path)))
    manifest = manifests.build(
        adapter,
        files=files,
        root=adapter_root(adapter),
        labels=adapter.labels,
        base=_base_record(plan),
        lineage=lineage(plan),
    )
    (directory / checkout.MANIFEST).write_bytes(checkout.to_bytes(manifest))


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
