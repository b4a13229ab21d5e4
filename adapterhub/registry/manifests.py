"""From what was read to the manifest: what a version IS, and nothing of when, where or how."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from adapterhub import digest, schema
from adapterhub.adapter import Adapter
from adapterhub.base import Base
from adapterhub.formats.peft import looks_like_path
from adapterhub.methods import method
from adapterhub.registry.inspection import rank_summary, saved, targets
from adapterhub.tensorfile import Header


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


def base_record(
    adapter: Adapter, base: Base | None, name: str | None, root: str | None
) -> BaseRecord:
    """`name` and `root` (weights_root) belong to `base`. A Hub id in the config keeps its name."""
    claim = adapter.base
    declared = claim.name if claim.name and not looks_like_path(claim.name) else None
    if base is None:
        return BaseRecord(claim.name, claim.revision, quantization=claim.quantization)
    return BaseRecord(
        name=declared or name,
        revision=claim.revision if declared else None,
        structure_root=base.structure_root,
        weights_root=root,
        quantization=claim.quantization,
    )


def build(
    adapter: Adapter,
    *,
    files: Sequence[StoredFile],
    header: Header,
    digests: Mapping[str, bytes],
    labels: Sequence[str],
    base: BaseRecord,
    lineage: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """The manifest, checked; `header` and `digests` (D by name) are of the stored weights."""
    alpha = adapter.config.get("lora_alpha")
    manifest = {
        "schema": 1,
        "kind": "adapter",
        "format": adapter.format,
        "method": adapter.method,
        "variants": list(method(adapter.method).implementation.variants(adapter.config)),
        "rank": rank_summary(adapter),
        "alpha": alpha,
        "targets": list(targets(adapter)),
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
        "adapter_root": digest.weights_root(
            (name, t.dtype, t.shape, digests[name]) for name, t in header.tensors.items()
        ),
        "lineage": lineage,
    }
    schema.check(manifest, "manifest", what="manifest")
    return manifest
