"""The verbs of the library: each a short composition of the rooms.

import adapterhub as ah

reg = ah.open()
reg.add("runs/ner", name="nli-graph", base="models/minilm")
ah.merge("models/minilm", ["nli-graph"], out="merged")
model = ah.load_model("nli-graph")
with ah.attach(base_model, "nli-graph"): ...
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from adapterhub import strictjson
from adapterhub.composing import (
    Comparison,
    Composition,
    Extracted,
    Resized,
    compare,
    compose,
    extract,
    resize,
)
from adapterhub.composing.verbs import AdapterSpec
from adapterhub.composing.window import Progress
from adapterhub.errors import AdapterHubError, InvalidOption, NotFound
from adapterhub.hub.client import Pushed, PushPlan, PushResult, plan_push, push, push_all
from adapterhub.hub.client.pulling import Pulled, PullPlan, pull
from adapterhub.merging import (
    MergePlan,
    MergeReport,
    Options,
    Source,
    differences,
    inputs,
    options_of,
    read_report,
)
from adapterhub.merging import plan as plan_of
from adapterhub.merging import repeat as repeat_plan
from adapterhub.merging import run as run_plan
from adapterhub.merging.sizes import parse_size
from adapterhub.registry import Filters, Inspection, Registry, checkout
from adapterhub.registry.opening import opened
from adapterhub.runtime.verbs import attach, load_model

if TYPE_CHECKING:
    from adapterhub.formats import Format
    from adapterhub.hub.server.serving import Options as ServeOptions
    from adapterhub.methods import Method


def open(
    path: str | Path | None = None, *, on_note: Callable[[str], None] | None = None
) -> Registry:
    """The registry at `path`, by default $ADAPTERHUB_HOME or the user's data directory."""
    return Registry(path, on_note=on_note)


def inspect(
    what: str | Path, *, allow_pickle: bool = False, registry: Registry | None = None
) -> Inspection:
    """What is this path or ref? Format, method, rank, targets, base, and problems."""
    with opened(registry) as reg:
        return reg.inspect(what, allow_pickle=allow_pickle)


def plan_merge(
    base: str | Path,
    adapters: Sequence[AdapterSpec],
    *,
    dtype: str | None = None,
    max_shard_size: int | str | None = None,
    force_base: bool = False,
    base_is_initialised: bool = False,
    part: str | None = None,
    allow_pickle: bool = False,
    registry: Registry | None = None,
) -> MergePlan:
    """What `merge` would do, without reading a weight. Arguments and errors as there."""
    options = Options(
        dtype=dtype,
        max_shard_bytes=parse_size(max_shard_size),
        force_base=force_base,
        base_is_initialised=base_is_initialised,
    )
    with opened(registry) as reg:
        sources = [_source(reg, spec, allow_pickle, part) for spec in adapters]
        return plan_of(reg.base.resolve(base), sources, options)


def merge(
    base: str | Path,
    adapters: Sequence[AdapterSpec],
    *,
    out: str | Path,
    dtype: str | None = None,
    max_shard_size: int | str | None = None,
    force_base: bool = False,
    base_is_initialised: bool = False,
    part: str | None = None,
    allow_pickle: bool = False,
    resume: bool = False,
    registry: Registry | None = None,
    on_plan: Callable[[MergePlan], tuple[Progress, Progress]] | None = None,
) -> MergeReport:
    """Base + adapters → a checkpoint in the directory `out`, which must not exist or be empty.

    `base`: a registered base, a directory, or a Hub id in the Hugging Face cache. `adapters`: refs
    or paths, or pairs of one and its weight. `dtype`: float32, float16, bfloat16. `max_shard_size`:
    bytes, or a text such as "5GB"; None keeps the base's own files. `base_is_initialised`: the base
    is the one that PiSSA and the like have changed. `part="lora"`: of a union (UniPELT) merge the
    LoRA only. `resume`: go on where an interrupted merge of the same inputs was. `on_plan` is given
    the plan before anything is written; what it returns is told of bytes hashed and written.

    Raises BaseMismatch, NotMergeable, OutputError and others, all before `out` exists.
    """
    with opened(registry) as reg:
        plan = plan_merge(
            base,
            adapters,
            dtype=dtype,
            max_shard_size=max_shard_size,
            force_base=force_base,
            base_is_initialised=base_is_initialised,
            part=part,
            allow_pickle=allow_pickle,
            registry=reg,
        )
        hashing, writing = on_plan(plan) if on_plan else (None, None)
        return run_plan(
            plan, Path(out), cache=reg.cache, hashing=hashing, writing=writing, resume=resume
        )


def _source(reg: Registry, spec: AdapterSpec, pickle: bool, part: str | None = None) -> Source:
    text, weight = spec if isinstance(spec, tuple) else (spec, 1.0)
    return inputs.source_of(reg.load(text, allow_pickle=pickle), float(weight), part)


def verify_directory(
    directory: str | Path,
    progress: Progress | None = None,
    *,
    repeat: bool = False,
    base: str | Path | None = None,
    adapters: Sequence[str | Path] = (),
    allow_pickle: bool = False,
    registry: Registry | None = None,
    repeating: Progress | None = None,
) -> list[str]:
    """In what a merged or exported directory differs from its adapterhub.json, a sentence each.

    `repeat`: then merge again, without writing, and compare every tensor with what the report
    says; the first that differs is named. The base is found among the registered ones and the
    adapters in the registry, by the digests of the report; `base` (a BASE) and `adapters` (all of
    them, in their order) name them otherwise. `progress` is told of bytes hashed, `repeating` of
    bytes merged.

    Raises NotFound for what is not at hand, BaseMismatch for what is another, SchemaError.
    """
    path = Path(directory).expanduser()
    if not path.is_dir():
        raise NotFound(f"{path} is not a directory", remedy="verify takes a REF or a directory")
    if _holds_manifest(path / checkout.MANIFEST):
        if repeat:
            raise InvalidOption(f"{path} is an exported adapter", remedy="--repeat is for merges")
        return checkout.differences(path)
    found = differences(path, progress)
    if found or not repeat:
        return found
    report = read_report(path)
    with opened(registry) as reg:
        at_hand = inputs.base_again(report, reg, base)
        sources = inputs.sources_again(report, reg, adapters, allow_pickle)
        plan = plan_of(at_hand, sources, options_of(report))
        return repeat_plan(plan, report, cache=reg.cache, progress=repeating)


def _holds_manifest(path: Path) -> bool:
    """Whether adapterhub.json is that of an exported adapter, not that of a merge."""
    try:
        return strictjson.load_object(path).get("kind") == "adapter"
    except AdapterHubError:
        return False


def serve(
    options: ServeOptions | None = None,
    *,
    on_start: Callable[[str], None] | None = None,
    registry: Registry | None = None,
) -> None:
    """A hub over the registry's home, for Hugging Face clients; returns when it is stopped.

    `options`: an `adapterhub.hub.server.serving.Options`. `on_start` is given the address. Raises
    MissingExtra, InvalidOption for an address that cannot be had or that has no token yet.
    """
    from adapterhub.hub.server import serving

    with opened(registry) as reg:
        serving.serve(reg, options or serving.Options(), on_start or (lambda address: None))


def methods() -> tuple[Method, ...]:
    """The methods that this version knows."""
    from adapterhub.methods import TABLE

    return tuple(TABLE.values())


def formats() -> tuple[Format, ...]:
    """The formats that this version knows; `does` tells which it reads, and which it only names."""
    from adapterhub.formats import TABLE

    return tuple(TABLE.values())


def env() -> dict[str, Any]:
    """Versions, places and limits; imports nothing heavy."""
    import platform
    from importlib import metadata

    from adapterhub import __version__, kernels
    from adapterhub.store import Store
    from adapterhub.tensorfile import usable_cores

    packages = ["torch", "transformers", "peft", "bitsandbytes", "safetensors"]
    packages += ["huggingface-hub", "numpy", "sqlite-utils"]
    found: dict[str, Any] = {
        "adapterhub": __version__,
        "home": str(Store.default_home()),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cores": usable_cores(),
        "kernel": kernels.name,
        **dict.fromkeys(packages, "not installed"),
    }
    for package in packages:
        with suppress(metadata.PackageNotFoundError):
            found[package] = metadata.version(package)
    return found


__all__ = [
    "AdapterHubError",
    "Comparison",
    "Composition",
    "Extracted",
    "Filters",
    "Inspection",
    "MergePlan",
    "MergeReport",
    "PullPlan",
    "Pulled",
    "PushPlan",
    "PushResult",
    "Pushed",
    "Registry",
    "Resized",
    "attach",
    "compare",
    "compose",
    "env",
    "extract",
    "formats",
    "inspect",
    "load_model",
    "merge",
    "methods",
    "open",
    "parse_size",
    "plan_merge",
    "plan_push",
    "pull",
    "push",
    "push_all",
    "resize",
    "serve",
    "verify_directory",
]
