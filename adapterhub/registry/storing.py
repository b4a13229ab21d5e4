"""The files of an adapter as they are stored: pickles as safetensors, no link that leads out."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from adapterhub import digest
from adapterhub.adapter import Reading, SourceFile
from adapterhub.errors import InvalidAdapter
from adapterhub.formats import stored
from adapterhub.registry import checkout, hubcache
from adapterhub.registry.manifests import StoredFile
from adapterhub.store import Store
from adapterhub.tensorfile import Tensor, write_file

# Read beside an adapter's own files: the card, the labels, what an export says of itself.
_BESIDE = ("README.md", "config.json", checkout.MANIFEST)


@dataclass(frozen=True)
class Source:
    """`file` lies where its bytes are to be taken from; `original` is the pickle it was made of."""

    file: SourceFile
    original: Mapping[str, Any] | None = None


@contextmanager
def as_stored(
    reading: Reading, sidecar: Mapping[str, Any], store: Store
) -> Iterator[Sequence[Source]]:
    """The files to store. A pickle is replaced by a safetensors file with its tensors.

    What a `sidecar` (the manifest of an export) says of the pickles of old is kept.
    """
    said = {e["path"]: e.get("converted_from") for e in sidecar.get("files", ())}
    converts = any(file.safe for file in reading.files)
    with checkout.scratch(store) if converts else nullcontext(reading.path) as directory:
        sources = []
        for file in reading.files:
            if file.safe is None:
                sources.append(Source(file, said.get(file.name)))
                continue
            path = directory / file.safe.name
            write_file(path, dict(sorted(file.safe.tensors.items())))
            sources.append(Source(SourceFile(file.safe.name, path, file.kind), _original(file)))
        _refuse_twins(reading, sources)
        yield sources


def _original(file: SourceFile) -> Mapping[str, Any]:
    content = file.path.read_bytes()
    return {"path": file.name, "size": len(content), "sha256": digest.of_bytes(content)}


def _refuse_twins(reading: Reading, sources: Sequence[Source]) -> None:
    names = [source.file.name for source in sources]
    for name in names:
        if names.count(name) > 1:
            raise InvalidAdapter(
                f"{reading.path}: two files would be stored as {name}",
                remedy="remove the one that is out of date",
            )


def put(store: Store, source: Source) -> StoredFile:
    found, size = store.put_blob_file(source.file.path)
    return StoredFile(source.file.name, size, found, source.original)


def stored_tensors(
    store: Store, sources: Sequence[Source], files: Sequence[StoredFile]
) -> dict[str, Tensor]:
    """Of the blobs, not of the sources: those may change while they are being added.

    Raises InvalidAdapter where two files have a tensor of one name.
    """
    found: dict[str, Tensor] = {}
    for source, file in zip(sources, files, strict=True):
        if source.file.kind != "weights":
            continue
        for name, tensor in stored.tensors(file.path, store.blob_path(file.sha256)).items():
            if name in found:
                raise InvalidAdapter(
                    f"two files of the adapter hold a tensor {name!a}",
                    remedy="re-export it with the library that wrote it",
                )
            found[name] = tensor
    return found


def is_blob(store: Store, path: Path) -> bool:
    """Whether it is a link of `path REF` into the store itself."""
    return path.is_symlink() and path.resolve().is_relative_to(_blobs(store))


def _blobs(store: Store) -> Path:
    return store.home.resolve() / "blobs"


def refuse_links(reading: Reading, store: Store) -> None:
    """Raises InvalidAdapter for a link that leads out of the adapter's directory.

    Only the Hugging Face cache's own, from a snapshot to the blobs of its repository, and the
    store's, from a linked version to its blobs, are followed: another would put a file of this
    machine into the registry under the adapter's name.
    """
    directory = reading.path if reading.path.is_dir() else reading.path.parent
    allowed = [directory.resolve(), _blobs(store)]
    blobs = hubcache.blobs_of(directory.resolve())
    allowed += [blobs] if blobs is not None else []
    paths = [file.path for file in reading.files]
    for path in (*paths, *(directory / name for name in _BESIDE)):
        target = path.resolve()
        if path.is_symlink() and not any(target.is_relative_to(place) for place in allowed):
            raise InvalidAdapter(
                f"{path} is a link that leads out of its directory, to {target}",
                remedy="put the file itself there, if it belongs to the adapter",
            )
