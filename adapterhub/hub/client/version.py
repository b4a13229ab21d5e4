"""What a version brings to a hub: its stored files, and nothing else that lies anywhere."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from adapterhub.digest import PREFIX
from adapterhub.registry import Registry
from adapterhub.registry.checkout import MANIFEST, to_bytes
from adapterhub.store import Store

README = "README.md"
_TEXT_BYTES = 4 * 1024 * 1024
_HEADER_BYTES = 1024 * 1024
# Long lists of words that came with the base.
_VOCABULARY = ("tokenizer.json", "vocab.json", "vocab.txt", "merges.txt")


@dataclass(frozen=True)
class Outgoing:
    """A file as it would lie on the hub. `sha256` is 64 hex digits."""

    path: str
    size: int
    sha256: str
    source: Path | bytes = field(repr=False)

    @staticmethod
    def of_bytes(path: str, data: bytes) -> Outgoing:
        return Outgoing(path, len(data), hashlib.sha256(data).hexdigest(), data)

    @cached_property
    def git_sha1(self) -> str | None:
        """The name of its blob in git, by which hubs know files that are not large.

        None where the bytes are not at hand.
        """
        found = hashlib.sha1(b"blob %d\0" % self.size, usedforsecurity=False)
        if isinstance(self.source, bytes):
            found.update(self.source)
            return found.hexdigest()
        try:
            with self.source.open("rb") as file:
                while piece := file.read(1 << 20):
                    found.update(piece)
        except FileNotFoundError:
            return None
        return found.hexdigest()


@dataclass(frozen=True)
class Version:
    """`card` is that of the name; `readmes` every README.md that the name ever had."""

    name: str
    digest: str
    manifest: Mapping[str, Any]
    card: Mapping[str, Any]
    readmes: tuple[str, ...]
    files: tuple[Outgoing, ...]
    store: Store = field(repr=False)

    @property
    def ref(self) -> str:
        return f"{self.name}@{self.digest}"

    @cached_property
    def sidecar(self) -> Outgoing:
        """Our manifest, as `export` writes it."""
        return Outgoing.of_bytes(MANIFEST, to_bytes(self.manifest))

    def earlier(self, entry: Mapping[str, Any]) -> Outgoing:
        """A file of another version's manifest, whose bytes may not be at hand any more."""
        path = self.store.blob_path(entry["sha256"])
        return Outgoing(entry["path"], entry["size"], entry["sha256"].removeprefix(PREFIX), path)

    @property
    def sidecar_text(self) -> str:
        return to_bytes(self.manifest).decode()

    @cached_property
    def texts(self) -> Mapping[str, str]:
        """What the files say in words: configs, templates, and the headers of safetensors."""
        return {
            file.path: text
            for file in self.files
            if isinstance(file.source, Path) and (text := _text(file.path, file.source))
        }


def version(registry: Registry, ref: str) -> Version:
    """Raises NotFound, and IntegrityError where a stored file is damaged or missing."""
    store = registry.store
    name, digest = store.resolve(ref)
    manifest = store.manifest(digest)
    for entry in manifest["files"]:
        store.verify_blob(entry["sha256"])
    files = tuple(
        Outgoing(
            entry["path"],
            entry["size"],
            entry["sha256"].removeprefix(PREFIX),
            store.blob_path(entry["sha256"]),
        )
        for entry in manifest["files"]
    )
    said = (event.fields.get("set") or {} for event in store.history(name))
    readmes = tuple(fields["readme"] for fields in said if isinstance(fields.get("readme"), str))
    return Version(name, digest, manifest, store.state(name).card, readmes, files, store)


def _text(name: str, path: Path) -> str:
    if name.rpartition("/")[2] in _VOCABULARY:
        return ""
    with path.open("rb") as file:
        if name.endswith(".safetensors"):
            length = int.from_bytes(file.read(8), "little")
            data = file.read(min(length, _HEADER_BYTES))
        else:
            data = file.read(_TEXT_BYTES)
    return "" if b"\0" in data else data.decode("utf-8", errors="replace")
