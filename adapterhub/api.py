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
from adapterhub.composing import Composition, Extracted, Resized, compose, extract, resize
from adapterhub.composing.verbs import AdapterSpec, Progress
from adapterhub.errors import AdapterHubError, BaseMismatch, InvalidOption, NotFound
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
from adapterhub.registry.origin import Origin

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from adapterhub.base import Base
    from adapterhub.formats import Format
    from adapterhub.hub.server.serving import Options as ServeOptions
    from adapterhub.methods import Method
    from adapterhub.runtime import Attached


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
    with suppress(AdapterHubError):
        return strictjson.load_object(path).get("kind") == "adapter"
    return False


def load_model(
    ref: str | Path,
    *,
    base: str | Path | None = None,
    force_base: bool = False,
    base_is_initialised: bool = False,
    allow_pickle: bool = False,
    registry: Registry | None = None,
) -> PreTrainedModel:
    """A transformers model of the adapter's task, with the adapter in its weights.

    The base is the one recorded with the version, found among the registered ones; `base` (a BASE)
    names another place. `base_is_initialised`: as in `merge`. Raises NotFound if the base is not at
    hand, BaseMismatch if it is another.
    """
    with opened(registry) as reg:
        loaded = reg.load(ref, allow_pickle=allow_pickle)
        recorded = (loaded.manifest or {}).get("base", {}).get("weights_root")
        name = loaded.adapter.base.name
        found = reg.base.resolve(base) if base else reg.base.find(recorded, name)
        if found is None:
            raise NotFound(
                f"the base of {loaded.name} is not at hand: {name or 'no name is recorded'}",
                remedy="give base=DIR, or register it: adapterhub base add DIR",
            )
        if recorded and not force_base and found.weights_root(reg.cache) != recorded:
            raise BaseMismatch(
                f"{found.path} is not the base recorded with {loaded.name}",
                remedy="give the recorded base, or force_base=True to use this one",
            )
    from adapterhub import runtime

    source = inputs.source_of(loaded)
    return runtime.load(found, source, base_is_initialised=base_is_initialised)


def attach(
    model: PreTrainedModel,
    adapters: AdapterSpec | Sequence[AdapterSpec],
    *,
    weight: float = 1.0,
    restore: str = "memory",
    base: str | Path | None = None,
    force_base: bool = False,
    base_is_initialised: bool = False,
    with_head: bool = True,
    allow_pickle: bool = False,
    registry: Registry | None = None,
) -> Attached:
    """Adapters on a transformers model that is in memory; off it again, bit for bit, at `detach`.

    `adapters`: a ref or path, a pair of one and its weight, or several in a list. `weight`: that of
    a single adapter. What merges goes into the weights, with the bits of `merge`; what does not
    runs beside them. `restore` says where the original bits are until then: "memory" keeps a copy
    of each changed tensor (`Attached.memory` says how many bytes), "base" reads them again from the
    files of `base` (a BASE; by default the one recorded with the adapter, else the directory that
    the model was loaded from), which are compared with the model first. `base_is_initialised`: as
    in `merge`. `with_head=False` leaves out the head that the adapter brings; `Attached.fates`
    lists what that is.

    A weight that the model shares under several names is taken apart where an adapter changes one
    of them only, and is shared again after `detach`.

    Shapes are always compared. The weights_root that an adapter records is compared with that of
    the files which `base` or the model's `name_or_path` names, if they were hashed before (as by
    `base add`, or a merge) or are no more than 1 GiB; `force_base` attaches all the same. Of a
    model whose origin cannot be told so, or which comes from quantised files, shapes are all.

        with ah.attach(model, "nli-graph") as attached:
            model(**inputs)
            attached.switch("nli-labels", weight=0.5)

    Raises BaseMismatch with all that does not fit, NotMergeable, NotSupported, AlreadyExists; the
    model is then as it was.
    """
    from adapterhub import runtime

    if restore not in runtime.RESTORE:
        raise InvalidOption(f"restore={restore!r}", remedy=f"one of {', '.join(runtime.RESTORE)}")

    with opened(registry) as reg:
        given = reg.base.resolve(base) if base is not None else None
        origin = Origin(model, reg.cache, given)

    def find(spec: Any, weight: float) -> Source:
        with opened(registry) as reg:
            pair = spec if isinstance(spec, tuple) else (spec, weight)
            source = _source(reg, pair, allow_pickle)
        if not force_base:
            origin.refuse_other(source.name, source.base_weights_root)
        return source

    single = isinstance(adapters, str | Path | tuple)
    specs: list[Any] = [adapters] if single else list(adapters)  # type: ignore[arg-type]
    if weight != 1.0 and (len(specs) != 1 or isinstance(specs[0], tuple)):
        raise InvalidOption("weight=… is that of a single adapter", remedy="give pairs: (ref, 0.5)")
    sources = [find(spec, weight) for spec in specs]
    files = given
    if restore == "base" and files is None:
        with opened(registry) as reg:
            files = _base_of(reg, model, sources)
    how = runtime.How(with_head=with_head, base_is_initialised=base_is_initialised)
    kept = files if restore == "base" else None
    return runtime.attach(model, sources, base=kept, find=find, how=how)


def _base_of(registry: Registry, model: PreTrainedModel, sources: Sequence[Source]) -> Base:
    """The files that a model in memory came from, as far as anybody says."""
    roots = [source.base_weights_root for source in sources if source.base_weights_root]
    found = registry.base.find(roots[0], None) if roots else None
    name = getattr(model, "name_or_path", None)
    if found is None and name:
        path = Path(name)
        found = registry.base.resolve(path if path.is_dir() else name)
    if found is None:
        raise NotFound(
            "nobody says which files this model was loaded from",
            remedy='give base=DIR, or restore="memory"',
        )
    return found


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
