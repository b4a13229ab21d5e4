"""Registered bases: pointers to checkpoints on disk, with what identifies them.

A BASE is the name of a registered one, a directory, or a Hub id that the Hugging Face cache holds;
`./`, `/` and `hub:` force the meaning, and what has two is refused.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path, PurePath
from typing import Any

from adapterhub import digest, schema, strictjson
from adapterhub.adapter import Adapter
from adapterhub.base import Base, LeafCache, open_base
from adapterhub.errors import (
    AdapterHubError,
    AlreadyExists,
    InvalidName,
    NotFound,
    SchemaError,
)
from adapterhub.known_bases import Structure
from adapterhub.methods import method
from adapterhub.registry import hubcache, structures
from adapterhub.registry.identify import Identification, identify
from adapterhub.store import files

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*(/[A-Za-z0-9][A-Za-z0-9._-]*)?")
_GENERIC = ("model", "base", "checkpoint", "final", "output", "weights")
Progress = Callable[[int], None]


class Bases:
    """The verbs `base add|list|show|rm|identify`."""

    def __init__(
        self, directory: Path, cache: LeafCache, on_note: Callable[[str], None] | None = None
    ) -> None:
        self.directory = directory
        self.cache = cache
        self.on_note = on_note
        self._structures: dict[str, Structure] = {}  # by weights_root

    def add(
        self, path: str | Path, *, name: str | None = None, progress: Progress | None = None
    ) -> dict[str, Any]:
        """Record a checkpoint (nothing is copied) and return its record, schema `base`.

        The same checkpoint under the same name again only refreshes the record. Raises InvalidBase,
        AlreadyExists (the name means another checkpoint), InvalidName.
        """
        base = self.resolve(path)
        name = name or _default_name(base.path)
        if not _NAME.fullmatch(name):
            raise InvalidName(
                f"{name!r} cannot name a base", remedy="letters, digits, . _ - and at most one /"
            )
        root = base.weights_root(self.cache, progress)
        if self._taken(name, root):
            known = self.show(name)
            raise AlreadyExists(
                f"the name {name} already means {known['path']}, with other weights",
                remedy=f"choose another --name, or adapterhub base rm {name}",
            )
        return self._write(base, name, root)

    def remember(self, base: Base, weights_root: str) -> str:
        """Record a base that was used, unless one with these weights is recorded and still there.

        A default name that means other weights gets a part of the digest behind it. Gives the name
        that the base is recorded by.
        """
        same = [record for record in self.list() if record["weights_root"] == weights_root]
        there = [record for record in same if Path(record["path"]).is_dir()]
        if there:
            return str(there[0]["name"])
        name = same[0]["name"] if same else _default_name(base.path)
        if self._taken(name, weights_root):
            name = f"{name}-{weights_root.removeprefix(digest.PREFIX)[:8]}"
        self._write(base, name, weights_root)
        return name

    def _taken(self, name: str, root: str) -> bool:
        place = self._place(name)
        return place.is_file() and self._read(place)["weights_root"] != root

    def _write(self, base: Base, name: str, root: str) -> dict[str, Any]:
        record = _record(base, name, root)
        schema.check(record, "base", what=f"base {name}")
        text = json.dumps(record, indent=1, ensure_ascii=False) + "\n"
        tmp = self.directory.parent / "tmp"  # the home's own, which gc sweeps
        with files.named_errors(self.directory), files.temporary(tmp) as (fd, path):
            files.write_all(fd, text.encode("utf-8"), path)
            files.publish(fd, path, self._place(name), 0o644)
        return record

    def list(self) -> list[dict[str, Any]]:
        """The records, by name. A damaged one is named in an error, not skipped."""
        records = [self._read(path) for path in self.directory.glob("*.json")]
        return sorted(records, key=lambda record: str(record["name"]))

    def show(self, name: str) -> dict[str, Any]:
        """One record. Raises NotFound."""
        place = self._place(name)
        if not _NAME.fullmatch(name) or not place.is_file():
            known = ", ".join(record["name"] for record in self.list()[:8]) or "none yet"
            raise NotFound(
                f"no base is called {name!r}",
                remedy=f"registered: {known}; add one with adapterhub base add DIR",
            )
        return self._read(place)

    def rm(self, name: str) -> dict[str, Any]:
        """Forget a base; its files stay where they are. Raises NotFound."""
        try:
            record = self.show(name)
        except SchemaError:  # a damaged record can be forgotten too
            record = {"name": name, "path": None}
        with files.named_errors(self.directory):
            files.unlink(self._place(name))
        return record

    def identify(self, adapter: Adapter) -> Identification:
        """Which base is it for? Of the catalogue and the registered ones, with how sure and why.

        The name in its config is told apart; the ranking rests on the tensors alone.
        """
        return self.identifier()(adapter)

    def identifier(self) -> Callable[[Adapter], Identification]:
        """`identify`, for many adapters: the registered bases are looked up once, and adapters of
        one shape compared once.
        """
        registered, skipped = self.structures()
        known: dict[tuple[Any, ...], Identification] = {}

        def find(adapter: Adapter) -> Identification:
            told = method(adapter.method).implementation.signature(adapter)
            name = adapter.base.name
            cut = adapter.config.get("layers_to_transform") is not None
            sizes = (tuple(told.modules.items()), tuple(told.whole.items()))
            key = (*sizes, told.width, told.layers, told.kv_width, name, cut)
            if key not in known:
                known[key] = identify(
                    told, declared=name, registered=registered, cut=cut, skipped=skipped
                )
            return known[key]

        return find

    def structures(self) -> tuple[dict[str, Structure], tuple[str, ...]]:
        """Name → modules and shapes of each registered base; and those that cannot be opened."""
        found, skipped = {}, []
        for record in self.list():
            name, root = record["name"], record["weights_root"]
            try:
                if root not in self._structures:
                    self._structures[root] = structures.of_base(open_base(Path(record["path"])))
                found[name] = self._structures[root]
            except AdapterHubError:
                skipped.append(name)
        return found, tuple(skipped)

    def find(self, weights_root: str | None, name: str | None) -> Base | None:
        """The base with these weights, if it is at hand: a registered one, or that of this name.

        Without `weights_root`, the base of this name is taken as it is.
        """
        for record in self.list():
            if weights_root and record["weights_root"] == weights_root:
                path = Path(record["path"])
                if path.is_dir():
                    return open_base(path, on_note=self.on_note)
        try:
            found = self.resolve(name) if name else None
        except AdapterHubError:
            return None
        if found and weights_root and found.weights_root(self.cache) != weights_root:
            return None
        return found

    def resolve(self, text: str | Path) -> Base:
        """A BASE as people write it; a `Path` is always a directory.

        Raises NotFound, InvalidName where it is ambiguous, InvalidBase.
        """
        path = text if isinstance(text, Path) else self._directory(text)
        return open_base(path.expanduser(), on_note=self.on_note)

    def _directory(self, text: str) -> Path:
        if text.startswith("hub:"):
            return hubcache.directory(text.removeprefix("hub:"))
        if text.startswith(("/", "./", "../", "~")) or text in (".", ".."):
            return Path(text).expanduser()
        meanings = self._meanings(text)
        if not meanings:
            raise self._unknown(text)
        if len({path.resolve() for path in meanings.values()}) > 1:
            options = " or ".join(f"{what} {path}" for what, path in meanings.items())
            raise InvalidName(
                f"{text!r} could mean {options}",
                remedy=f"write ./{text} for the directory, hub:{text} for the Hub's model",
            )
        return next(iter(meanings.values()))

    def _unknown(self, text: str) -> NotFound:
        known = ", ".join(record["name"] for record in self.list()[:8])
        hub = f"; from the Hub: hf download {text}" if hubcache.is_id(text) else ""
        return NotFound(
            f"{text} is no registered base, no directory, and not in the Hugging Face cache",
            remedy=f"check the spelling (registered: {known or 'none yet'}){hub}",
        )

    def _meanings(self, text: str) -> dict[str, Path]:
        found: dict[str, Path] = {}
        if _NAME.fullmatch(text):
            if self._place(text).is_file():
                found["the registered base at"] = Path(self.show(text)["path"])
            if (cached := hubcache.cached(text)) is not None:
                found["the cached Hub model at"] = cached
        if Path(text).is_dir():
            found["the directory"] = Path(text)
        return found

    def _place(self, name: str) -> Path:
        return self.directory / f"{name.replace('/', '%2F')}.json"

    def _read(self, path: Path) -> dict[str, Any]:
        try:
            record = strictjson.load_object(path)
            schema.check(record, "base", what=str(path))
        except SchemaError as error:
            name = path.name.removesuffix(".json").replace("%2F", "/")
            remedy = f"adapterhub base rm {name}, then add it again"
            raise SchemaError(error.message, details=error.details, remedy=remedy) from error
        return record


def _default_name(path: Path) -> str:
    """The directory's name; for a snapshot in the Hugging Face cache its repository."""
    return hubcache.repository(path) or short_name(str(path)) or "base"


def short_name(path: str) -> str | None:
    """What a path calls a model: its last part that means anything; None if none does.

    `/data/minilm` → `minilm`, `C:\\runs\\ner\\model` → `ner`.
    """
    repository = hubcache.repository(PurePath(path))
    if repository is not None:
        return repository
    for part in reversed(path.replace("\\", "/").split("/")):
        name = re.sub(r"[^A-Za-z0-9._-]+", "-", part).strip("-._")
        if name and name.lower() not in _GENERIC:
            return name
    return None


def _record(base: Base, name: str, root: str) -> dict[str, Any]:
    return {
        "schema": 1,
        "name": name,
        "path": str(base.path),
        "model_type": base.model_type,
        "architecture": base.model_class.name if base.model_class else None,
        "dtype": "+".join(base.dtypes),
        "parameters": base.parameters,
        "tied": dict(base.tied),
        "structure_root": base.structure_root,
        "weights_root": root,
        "config_digest": base.config_digest,
        "tokenizer_digest": base.tokenizer_digest,
        "added": datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
    }
