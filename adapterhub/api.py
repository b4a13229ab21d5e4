"""The verbs of the library: each a short composition of the rooms.

import adapterhub as ah

reg = ah.open()
reg.add("runs/ner", name="nli-graph", base="models/minilm")
ah.merge("models/minilm", ["nli-graph"], out="merged")
model = ah.load_model("nli-graph")
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from adapterhub import strictjson
from adapterhub.errors import AdapterHubError, BaseMismatch, InvalidOption, NotFound
from adapterhub.formats.roots import adapter_root
from adapterhub.hub.client import Pushed, PushPlan, PushResult, plan_push, push, push_all
from adapterhub.hub.client.pulling import Pulled, PullPlan, pull
from adapterhub.merging import (
    MergePlan,
    MergeReport,
    Options,
    Source,
    differences,
    options_of,
    read_report,
)
from adapterhub.merging import plan as plan_of
from adapterhub.merging import repeat as repeat_plan
from adapterhub.merging import run as run_plan
from adapterhub.registry import Filters, Inspection, Loaded, Registry, checkout
from adapterhub.registry.opening import opened

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from adapterhub.base import Base
    from adapterhub.formats import Format
    from adapterhub.methods import Method

Progress = Callable[[int], None]
AdapterSpec = str | Path | tuple[str | Path, float]

_UNITS = {"": 1, "B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12}
_UNITS |= {"KIB": 2**10, "MIB": 2**20, "GIB": 2**30, "TIB": 2**40}


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
        sources = [_source(reg, spec, allow_pickle) for spec in adapters]
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
    allow_pickle: bool = False,
    resume: bool = False,
    registry: Registry | None = None,
    on_plan: Callable[[MergePlan], tuple[Progress, Progress]] | None = None,
) -> MergeReport:
    """Base + adapters → a checkpoint in the directory `out`, which must not exist or be empty.

    `base`: a registered base, a directory, or a Hub id in the Hugging Face cache. `adapters`: refs
    or paths, or pairs of one and its weight. `dtype`: float32, float16, bfloat16. `max_shard_size`:
    bytes, or a text such as "5GB"; None keeps the base's own files. `base_is_initialised`: the base
    is the one that PiSSA and the like have changed. `resume`: go on where an interrupted merge of
    the same inputs was. `on_plan` is given the plan before anything is
    written, and returns two functions that are told of bytes hashed and written.

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
            allow_pickle=allow_pickle,
            registry=reg,
        )
        hashing, writing = on_plan(plan) if on_plan else (None, None)
        return run_plan(
            plan, Path(out), cache=reg.cache, hashing=hashing, writing=writing, resume=resume
        )


def _source(registry: Registry, spec: AdapterSpec, allow_pickle: bool) -> Source:
    text, weight = spec if isinstance(spec, tuple) else (spec, 1.0)
    return source_of(registry.load(text, allow_pickle=allow_pickle), float(weight))


def source_of(loaded: Loaded, weight: float = 1.0) -> Source:
    """What a merge takes of an adapter that was loaded."""
    manifest = loaded.manifest or {}
    return Source(
        name=loaded.name,
        adapter=loaded.adapter,
        weight=weight,
        digest=loaded.digest,
        adapter_root=manifest.get("adapter_root"),
        base_weights_root=manifest.get("base", {}).get("weights_root"),
        tokenizer=loaded.tokenizer,
    )


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
        at_hand = _base_of(report, reg, base)
        sources = _sources_of(report, reg, adapters, allow_pickle)
        plan = plan_of(at_hand, sources, options_of(report))
        return repeat_plan(plan, report, cache=reg.cache, progress=repeating)


def _base_of(report: Mapping[str, Any], registry: Registry, given: str | Path | None) -> Base:
    root = report["base"]["weights_root"]
    found = registry.base.resolve(given) if given else registry.base.find(root, None)
    if found is None:
        raise NotFound(
            f"the base of this merge, {root}, is not among the registered ones",
            remedy="name it with --base DIR, or register it: adapterhub base add DIR",
        )
    if (other := found.weights_root(registry.cache)) != root:
        raise BaseMismatch(
            f"{found.path} is not the base of this merge: its weights_root is {other}, that of "
            f"the report {root}",
            remedy="give the base that was merged, unchanged",
        )
    return found


def _sources_of(
    report: Mapping[str, Any],
    registry: Registry,
    given: Sequence[str | Path],
    allow_pickle: bool,
) -> list[Source]:
    entries = report["adapters"]
    if given and len(given) != len(entries):
        raise InvalidOption(
            f"{len(given)} adapters were given, the merge had {len(entries)}",
            remedy="name all of them, in the order of the merge",
        )
    specs: list[str | Path | None] = [*given] or [None] * len(entries)
    return [
        _source_again(registry, entry, spec, allow_pickle)
        for entry, spec in zip(entries, specs, strict=True)
    ]


def _source_again(
    registry: Registry, entry: Mapping[str, Any], spec: str | Path | None, allow_pickle: bool
) -> Source:
    root = entry["adapter_root"]
    if spec is None and entry["digest"] is None:
        raise NotFound(
            f"the merge took an adapter from a path, which the report does not keep ({root})",
            remedy="name it with --adapter PATH; with several, all of them in their order",
        )
    if spec is None:
        return source_of(registry.load_version(entry["digest"]), entry["weight"])
    loaded = registry.load(spec, allow_pickle=allow_pickle)
    source = source_of(loaded, entry["weight"])
    if (other := source.adapter_root or adapter_root(source.adapter)) != root:
        raise BaseMismatch(
            f"{loaded.name} is not the adapter of this merge: its root is {other}, that of the "
            f"report {root}",
            remedy="give the adapter that was merged, unchanged",
        )
    return source


def _holds_manifest(path: Path) -> bool:
    """Whether adapterhub.json is that of an exported adapter, not that of a merge."""
    try:
        return strictjson.load_object(path).get("kind") == "adapter"
    except AdapterHubError:
        return False


def load_model(
    ref: str | Path,
    *,
    base: str | Path | None = None,
    force_base: bool = False,
    allow_pickle: bool = False,
    registry: Registry | None = None,
) -> PreTrainedModel:
    """A transformers model of the adapter's task, with the adapter in its weights.

    The base is the one recorded with the version, found among the registered ones; `base` (a BASE)
    names another place. Raises NotFound if the base is not at hand, BaseMismatch if it is another.
    """
    with opened(registry) as reg:
        loaded = reg.load(ref, allow_pickle=allow_pickle)
        recorded = (loaded.manifest or {}).get("base", {}).get("weights_root")
        found = reg.base.resolve(base) if base else reg.base.find(recorded, _base_name(loaded))
        if found is None:
            raise NotFound(
                f"the base of {loaded.name} is not at hand: "
                f"{_base_name(loaded) or 'no name is recorded'}",
                remedy="give base=DIR, or register it: adapterhub base add DIR",
            )
        if recorded and not force_base and found.weights_root(reg.cache) != recorded:
            raise BaseMismatch(
                f"{found.path} is not the base recorded with {loaded.name}",
                remedy="give the recorded base, or force_base=True to use this one",
            )
    from adapterhub import runtime

    return runtime.load(found, loaded.adapter)


def _base_name(loaded: Loaded) -> str | None:
    return loaded.adapter.base.name


def serve(
    *,
    host: str = "127.0.0.1",
    port: int = 8080,
    public_read: bool = False,
    url: str = "",
    behind_proxy: bool = False,
    log_level: str = "info",
    on_start: Callable[[str], None] | None = None,
    registry: Registry | None = None,
) -> None:
    """A hub over the registry's home, for Hugging Face clients; returns when it is stopped.

    `on_start` is given its address. On loopback, requests without a token read public
    repositories; elsewhere only with `public_read`, and a token must exist. `url` is how clients
    reach it where that is not what their requests say. Raises MissingExtra, InvalidOption.
    """
    from adapterhub.hub.server import serving

    options = serving.Options(host, port, public_read, url, behind_proxy, log_level)
    with opened(registry) as reg:
        serving.serve(reg, options, on_start or (lambda address: None))


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
    }
    for package in packages:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            found[package] = "not installed"
    return found


def parse_size(text: int | str | None) -> int | None:
    """Bytes from a number or a text such as "5GB" (10⁹) or "512MiB" (2²⁰). Raises InvalidOption."""
    if text is None:
        return None
    text = str(text)
    digits = text.strip().rstrip("BKMGTIbkmgti ")
    unit = text.strip()[len(digits) :].strip().upper()
    try:
        value = int(float(digits) * _UNITS[unit])
    except (ValueError, KeyError, OverflowError):
        value = 0
    if value < 1:
        raise InvalidOption(f"{text!r} is not a size", remedy="for example 5GB or 512MiB")
    return value


__all__ = [
    "AdapterHubError",
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
    "env",
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
    "serve",
    "verify_directory",
]
