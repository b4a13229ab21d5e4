"""From what was read to the manifest: what a version IS, and nothing of when, where or how."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from adapterhub import schema
from adapterhub.adapter import Adapter
from adapterhub.base import Base
from adapterhub.formats.peft import looks_like_path
from adapterhub.methods import method
from adapterhub.registry import figures
from adapterhub.registry.bases import short_name
from adapterhub.registry.inspection import saved, targets


@dataclass(frozen=True)
class StoredFile:
    """A file of an adapter once its bytes are in the store; `sha256` is `sha256:…`."""

    path: str
    size: int
    sha256: str
    converted_from: Mapping[str, Any] | None = None

    def entry(self) -> dict[str, Any]:
        entry: dict[str, Any] = {"path": self.path, "size": self.size, "sha256": self.sha256}
        if self.converted_from:
            entry["converted_from"] = dict(self.converted_from)
        return entry


@dataclass(frozen=True)
class BaseRecord:
    """The base of a version, as far as it is known."""

    name: str | None = None
    revision: str | None = None
    structure_root: str | None = None
    weights_root: str | None = None
    quantization: str | None = None


def base_record(adapter: Adapter, base: Base | None, root: str | None) -> BaseRecord:
    """`root` is the weights_root of `base`, where that is at hand.

    The name is what the adapter says, never what this machine calls the base: else the same adapter
    with the same base would have another digest elsewhere. Of a path on somebody's machine only the
    last part is kept once the digests tell which base it was.
    """
    claim = adapter.base
    if base is None:
        return BaseRecord(claim.name, claim.revision, quantization=claim.quantization)
    is_path = claim.name is not None and looks_like_path(claim.name)
    return BaseRecord(
        name=short_name(claim.name) if claim.name and is_path else claim.name,
        revision=None if is_path else claim.revision,
        structure_root=base.structure_root,
        weights_root=root,
        quantization=claim.quantization,
    )


def build(
    adapter: Adapter,
    *,
    files: Sequence[StoredFile],
    root: str,
    labels: Sequence[str],
    base: BaseRecord,
    lineage: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """The manifest, checked; `root` is the weights_root of the stored tensors, by their names."""
    manifest = {
        "schema": 1,
        "kind": "adapter",
        "format": adapter.format,
        "method": adapter.method,
        "variants": list(method(adapter.method).variants(adapter.config)),
        "rank": figures.rank_summary(adapter),
        "alpha": figures.alpha(adapter.method, adapter.config),
        "targets": [target for target in targets(adapter) if target],  # a prompt has no module
        "saved": list(saved(adapter)),
        "dtype": "+".join(adapter.dtypes),
        "parameters": adapter.parameters,
        "task": adapter.task,
        "labels": list(labels),
        "base": {
            "name": base.name,
            "revision": base.revision,
            "structure_root": base.structure_root,
            "weights_root": base.weights_root,
            "quantization": base.quantization,
        },
        "files": [file.entry() for file in sorted(files, key=lambda file: file.path)],
        "adapter_root": root,
        "lineage": lineage,
    }
    schema.check(manifest, "manifest", what="manifest")
    return manifest
