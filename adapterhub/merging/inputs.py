"""What goes into a merge: from a loaded adapter, or found again by the report of a merge."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from adapterhub.base import Base
from adapterhub.errors import BaseMismatch, InvalidOption, NotFound
from adapterhub.formats.roots import adapter_root
from adapterhub.merging.plan import Source
from adapterhub.registry import Loaded, Registry


def source_of(loaded: Loaded, weight: float = 1.0, part: str | None = None) -> Source:
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
        part=part,
    )


def base_again(report: Mapping[str, Any], registry: Registry, given: str | Path | None) -> Base:
    """The base of a merge: `given`, or the registered one with the report's weights_root.

    Raises NotFound, BaseMismatch.
    """
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


def sources_again(
    report: Mapping[str, Any],
    registry: Registry,
    given: Sequence[str | Path],
    allow_pickle: bool,
) -> list[Source]:
    """The adapters of a merge, in its order: `given`, or those of the registry by their digests.

    Raises NotFound, BaseMismatch, InvalidOption.
    """
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
    how = (entry["weight"], entry.get("part"))  # older reports have no part
    if spec is None and entry["digest"] is None:
        raise NotFound(
            f"the merge took an adapter from a path, which the report does not keep ({root})",
            remedy="name it with --adapter PATH; with several, all of them in their order",
        )
    if spec is None:
        return source_of(registry.load_version(entry["digest"]), *how)
    loaded = registry.load(spec, allow_pickle=allow_pickle)
    source = source_of(loaded, *how)
    if (other := source.adapter_root or adapter_root(source.adapter)) != root:
        raise BaseMismatch(
            f"{loaded.name} is not the adapter of this merge: its root is {other}, that of the "
            f"report {root}",
            remedy="give the adapter that was merged, unchanged",
        )
    return source
