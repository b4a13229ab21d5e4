"""Registered bases: pointers to checkpoints on disk, with what identifies them.

A BASE is the name of a registered one, a directory, or a Hub id that the Hugging Face cache holds;
`./`, `/` and `hub:` force the meaning, and what has two is refused.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from adapterhub import schema, strictjson
from adapterhub.base import Base, LeafCache, open_base
from adapterhub.errors import AdapterHubError, AlreadyExists, InvalidName, NotFound
from adapterhub.registry import hubcache
from adapterhub.store import files

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*(/[A-Za-z0-9][A-Za-z0-9._-]*)?")
_GENERIC = ("model", "base", "checkpoint", "final", "output", "weights")
Progress = Callable[[int], None]


class Bases:
    """The verbs `base add|list|show|rm`."""

    def __init__(
        self, directory: Path, cache: LeafCache, on_note: Callable[[str], None] | None = None
    ) -> None:
        self.directory = directory
        self.cache = cache
        self.on_note = on_note

    def add(
        self, path: str | Path, *, name: str | None = None, progress: Progress | None = None
    ) -> dict[str, Any]:
        """Record a checkpoint (nothing is copied) and return its record, schema `base`.

        The same checkpoint under the same name again only refreshes the record. Raises InvalidBase,
        AlreadyExists (the name means another checkpoint), InvalidName.
        """
        base = self._open(str(path))
        name = name or _default_name(base.path)
        if not _NAME.fullmatch(name):
            raise InvalidName(
                f"{name!r} cannot name a base", remedy="letters, digits, . _ - and at most one /"
            )
        root = base.weights_root(self.cache, progress)
        if self._place(name).is_file():
            known = self.show(name)
            if known["weights_root"] != root:
                raise AlreadyExists(
                    f"the name {name} already means {known['path']}, with other weights",
                    remedy=f"choose another --name, or adapterhub base rm {name}",
                )
        record = _record(base, name, root)
        schema.check(record, "base", what=f"base {name}")
        self._write(record)
        return record

    def _write(self, record: dict[str, Any]) -> None:
        text = json.dumps(record, indent=1, ensure_ascii=False) + "\n"
        with files.named_errors(self.directory), files.temporary(self.directory) as (fd, path):
            files.write_all(fd, text.encode("utf-8"), path)
            files.publish(fd, path, self._place(record["name"]), 0o644)

    def list(self) -> list[dict[str, Any]]:
        """The records, by name. A damaged one is named in an error, not skipped."""
        return [self._read(path) for path in sorted(self.directory.glob("*.json"))]

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
        record = self.show(name)
        files.unlink(self._place(name))
        return record

    def find(self, weights_root: str | None, name: str | None) -> Base | None:
        """The base with these weights, else the one of this name, if it is at hand."""
        for record in self.list():
            if weights_root and record["weights_root"] == weights_root:
                path = Path(record["path"])
                if path.is_dir():
                    return open_base(path, on_note=self.on_note)
        if weights_root is None and name:
            try:
                return self.resolve(name)
            except AdapterHubError:
                return None
        return None

    def resolve(self, text: str | Path) -> Base:
        """A BASE as people write it. Raises NotFound, InvalidName where it is ambiguous."""
        return self._open(str(text))

    def _open(self, text: str) -> Base:
        return open_base(self._directory(text), on_note=self.on_note)

    def _directory(self, text: str) -> Path:
        if text.startswith("hub:"):
            return hubcache.directory(text.removeprefix("hub:"))
        if text.startswith(("/", "./", "../", "~")) or text in (".", ".."):
            return Path(text).expanduser()
        meanings = self._meanings(text)
        if not meanings:
            return hubcache.directory(text) if "/" in text else Path(text)
        if len({path.resolve() for path in meanings.values()}) > 1:
            options = " or ".join(f"{what} {path}" for what, path in meanings.items())
            raise InvalidName(
                f"{text!r} could mean {options}",
                remedy=f"write ./{text} for the directory, hub:{text} for the Hub's model",
            )
        return next(iter(meanings.values()))

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
        record = strictjson.load_object(path)
        schema.check(record, "base", what=str(path))
        return record


def _default_name(path: Path) -> str:
    """The directory's name; for a snapshot in the Hugging Face cache its repository."""
    if path.parent.name == "snapshots" and path.parent.parent.name.startswith("models--"):
        return path.parent.parent.name.removeprefix("models--").replace("--", "/", 1)
    name = path.parent.name if path.name.lower() in _GENERIC else path.name
    return re.sub(r"[^A-Za-z0-9._-]+", "-", name).strip("-._") or "base"


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
