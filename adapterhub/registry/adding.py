"""`add`: from files to a version. Everything is checked before the first byte is stored."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from adapterhub import digest, schema, strictjson
from adapterhub.adapter import Adapter, Reading, SourceFile
from adapterhub.base import Base
from adapterhub.errors import AdapterHubError, InvalidOption
from adapterhub.formats import peft
from adapterhub.registry import checkout, fit, manifests
from adapterhub.registry.inspection import require
from adapterhub.registry.manifests import BaseRecord, StoredFile
from adapterhub.store import Store
from adapterhub.tensorfile import Header, read_header, tensor_digests, write_file

BASE_PROBLEMS = ("no-base", "local-base", "unpinned-base")


@dataclass(frozen=True)
class Added:
    """`status`: "added", or "unchanged" where the name's latest is this very version."""

    name: str
    digest: str
    status: str
    method: str
    base: str | None
    parameters: int
    bytes: int
    notes: tuple[str, ...] = ()

    @property
    def version(self) -> str:
        return f"{self.name}@{self.digest}"

    def to_dict(self) -> dict[str, Any]:
        return {**asdict(self), "version": self.version}


@dataclass(frozen=True)
class Request:
    """What the user asked for. `labels` replace those found beside the adapter."""

    name: str
    tags: tuple[str, ...] = ()
    labels: tuple[str, ...] = ()
    new: bool = False
    origin: Mapping[str, Any] | None = None

    def __post_init__(self) -> None:
        if len(set(self.labels)) != len(self.labels) or not all(self.labels):
            raise InvalidOption(
                f"labels must be different and not empty: {', '.join(self.labels)}",
                remedy="--labels O,SRC,REL,TGT",
            )


@dataclass(frozen=True)
class BaseAtHand:
    """A base that the user named: its registered name, and its weights_root."""

    base: Base
    name: str
    weights_root: str


def add(store: Store, reading: Reading, request: Request, at_hand: BaseAtHand | None) -> Added:
    """Store an adapter and move its name's `latest` to it. Raises what is wrong with it."""
    adapter = require(reading)
    if at_hand is not None:
        fit.check(at_hand.base, adapter, name=str(reading.path))
    sidecar = _sidecar(reading)
    labels = request.labels or tuple(sidecar.get("labels", ())) or adapter.labels
    record = _base_record(adapter, at_hand, sidecar)
    with _as_safetensors(reading, adapter) as (sources, converted), store.writing():
        stored = [_put(store, source, converted) for source in sources]
        header = _stored_weights(store, stored)
        manifest = manifests.build(
            adapter,
            files=stored,
            header=header,
            digests=tensor_digests(header.tensors),
            labels=labels,
            base=record,
            lineage=sidecar.get("lineage"),
        )
        version = store.put_manifest(manifest)
        outcome = store.add_version(
            request.name,
            version,
            tags=request.tags,
            origin=request.origin,
            card=reading.card or None,
            expect_new=request.new,
        )
    settled = BASE_PROBLEMS if at_hand else ()  # the base that was given settles them
    return Added(
        name=outcome.name,
        digest=version,
        status=outcome.status,
        method=adapter.method,
        base=record.name,
        parameters=adapter.parameters,
        bytes=sum(file.size for file in stored),
        notes=tuple(p.sentence() for p in reading.problems if not (p.fatal or p.code in settled)),
    )


def _base_record(
    adapter: Adapter, at_hand: BaseAtHand | None, sidecar: Mapping[str, Any]
) -> BaseRecord:
    if at_hand is None and sidecar:
        return BaseRecord(**sidecar["base"])
    if at_hand is None:
        return manifests.base_record(adapter, None, None, None)
    return manifests.base_record(adapter, at_hand.base, at_hand.name, at_hand.weights_root)


def _sidecar(reading: Reading) -> Mapping[str, Any]:
    """The manifest that an exported adapter carries, if it is about these very files."""
    path = reading.path / checkout.MANIFEST
    if not path.is_file():
        return {}
    try:
        manifest = strictjson.load_object(path)
        schema.check(manifest, "manifest", what=str(path))
    except AdapterHubError:
        return {}  # a foreign adapterhub.json, such as that of a merge, says nothing about this
    said = {entry["path"]: entry["sha256"] for entry in manifest["files"]}
    here = {file.name: digest.of_bytes(file.path.read_bytes()) for file in reading.files}
    return manifest if said == here else {}


def _stored_weights(store: Store, stored: Sequence[StoredFile]) -> Header:
    """Of the blob, not of the source: that one may change while it is being added."""
    weights = next(file for file in stored if file.path == peft.WEIGHTS)
    return read_header(store.blob_path(weights.sha256))


def _put(store: Store, source: SourceFile, converted: Mapping[str, Any] | None) -> StoredFile:
    found, size = store.put_blob_file(source.path)
    return StoredFile(source.name, size, found, converted if source.kind == "weights" else None)


@contextmanager
def _as_safetensors(
    reading: Reading, adapter: Adapter
) -> Iterator[tuple[Sequence[SourceFile], Mapping[str, Any] | None]]:
    """The files to store; a pickle is replaced by a safetensors file made from its tensors."""
    weights = next(file for file in reading.files if file.kind == "weights")
    if weights.name == peft.WEIGHTS:
        yield reading.files, None
        return
    with tempfile.TemporaryDirectory(prefix="adapterhub-") as directory:
        path = Path(directory) / peft.WEIGHTS
        tensors = {peft.key(adapter, m, role): t for m, role, t in adapter.tensors()}
        write_file(path, dict(sorted(tensors.items())))
        original = {
            "path": weights.name,
            "size": weights.path.stat().st_size,
            "sha256": digest.of_bytes(weights.path.read_bytes()),
        }
        others = [file for file in reading.files if file.kind != "weights"]
        yield [SourceFile(peft.WEIGHTS, path, "weights"), *others], original
