"""Where a model in memory was loaded from, and whether that is the base that an adapter records.

A model has no cheap digest. The directory that it came from has one: its files' weights_root, which
is remembered for files that were hashed before. Nothing large is hashed for this.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from adapterhub.base import Base, LeafCache, open_base
from adapterhub.errors import AdapterHubError, BaseMismatch
from adapterhub.registry import hubcache

MOST_BYTES = 1 << 30  # that are hashed unasked: about a second


@dataclass(frozen=True)
class Origin:
    """Of a transformers model. `files`: the base, where somebody says which."""

    model: Any
    cache: LeafCache
    files: Base | None = None

    @cached_property
    def base(self) -> Base | None:
        """`files`, else the directory or the snapshot in the Hugging Face cache that the model
        names; None where that cannot be told, or where quantised files say nothing of the base.
        """
        found = self.files or _named(self.model)
        return None if found is None or found.config.get("quantization_config") else found

    @cached_property
    def root(self) -> str | None:
        """weights_root; None where it is not known, and there is too much to hash."""
        if self.base is None:
            return None
        unread = [file for file in self.base.checkpoint.files if self.cache.get(file) is None]
        sizes = [t.nbytes for t in self.base.tensors.values() if t.path in unread]
        return self.base.weights_root(self.cache) if sum(sizes) <= MOST_BYTES else None

    def refuse_other(self, name: str, recorded: str | None) -> None:
        """Raises BaseMismatch where the adapter `name` records another base."""
        if recorded is None or self.root is None or self.base is None or self.root == recorded:
            return
        raise BaseMismatch(
            f"{name} records a base of weights_root {recorded}, and this model comes from "
            f"{self.base.path}, which has {self.root}",
            remedy="attach it to the recorded base, or give force_base=True to use this model",
        )


def _named(model: Any) -> Base | None:
    name, commit = getattr(model, "name_or_path", None), getattr(model.config, "_commit_hash", None)
    try:
        if not name:
            return None
        if Path(name).is_dir():
            return open_base(Path(name))
        found = hubcache.cached(name)
        return open_base(found) if found is not None and found.name == commit else None
    except (AdapterHubError, OSError):  # gone, or in another format, by now
        return None
