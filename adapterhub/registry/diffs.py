"""What differs between two versions: fields of the manifests, and tensors."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from adapterhub.store import Store
from adapterhub.tensorfile import FileTensor, read_header, tensor_digests

_FIELDS: tuple[str, ...] = (
    "format",
    "method",
    "variants",
    "rank",
    "alpha",
    "targets",
    "saved",
    "dtype",
    "parameters",
    "task",
    "labels",
    "lineage",
)


@dataclass(frozen=True)
class Difference:
    """`fields` maps a field to its two values. Tensors are compared by their digests."""

    left: str
    right: str
    fields: dict[str, tuple[Any, Any]]
    only_left: tuple[str, ...]
    only_right: tuple[str, ...]
    changed: tuple[str, ...]
    same: int

    @property
    def equal(self) -> bool:
        return not (self.fields or self.only_left or self.only_right or self.changed)

    def to_dict(self) -> dict[str, Any]:
        return {**asdict(self), "equal": self.equal}


def diff(
    store: Store,
    left: tuple[str, Mapping[str, Any]],
    right: tuple[str, Mapping[str, Any]],
) -> Difference:
    """Compare two `(version, manifest)`."""
    one, other = _tensors(store, left[1]), _tensors(store, right[1])
    both = [name for name in one if name in other]
    changed = _changed(one, other, both)
    return Difference(
        left=left[0],
        right=right[0],
        fields=_field_differences(left[1], right[1]),
        only_left=tuple(sorted(one.keys() - other.keys())),
        only_right=tuple(sorted(other.keys() - one.keys())),
        changed=changed,
        same=len(both) - len(changed),
    )


def _field_differences(
    left: Mapping[str, Any], right: Mapping[str, Any]
) -> dict[str, tuple[Any, Any]]:
    found = {f: (left[f], right[f]) for f in _FIELDS if left[f] != right[f]}
    for field in left["base"]:
        if left["base"][field] != right["base"][field]:
            found[f"base.{field}"] = (left["base"][field], right["base"][field])
    files = [{e["path"]: e["sha256"] for e in m["files"]} for m in (left, right)]
    for path in sorted(files[0].keys() | files[1].keys()):
        if files[0].get(path) != files[1].get(path) and not path.endswith(".safetensors"):
            found[f"file {path}"] = (files[0].get(path), files[1].get(path))
    return found


def _tensors(store: Store, manifest: Mapping[str, Any]) -> Mapping[str, FileTensor]:
    weights = next(e for e in manifest["files"] if e["path"].endswith(".safetensors"))
    return read_header(store.blob_path(weights["sha256"])).tensors


def _changed(
    one: Mapping[str, FileTensor], other: Mapping[str, FileTensor], both: list[str]
) -> tuple[str, ...]:
    digests = [tensor_digests({name: side[name] for name in both}) for side in (one, other)]
    return tuple(
        name
        for name in both
        if digests[0][name] != digests[1][name]
        or (one[name].dtype, one[name].shape) != (other[name].dtype, other[name].shape)
    )
