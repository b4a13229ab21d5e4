"""Models in the Hugging Face cache: looked up, never downloaded unasked."""

from __future__ import annotations

import re
from pathlib import Path, PurePath

from adapterhub.errors import NotFound

_ID = re.compile(r"(?=.{1,96}$)[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?", re.ASCII)


def is_id(text: str) -> bool:
    """Whether `text` is spelled as the Hub spells repositories: `gpt2`, `owner/name`."""
    return _ID.fullmatch(text) is not None and "--" not in text and ".." not in text


def cached(repository: str) -> Path | None:
    """The newest cached snapshot of a model repository (`owner/name`), or None."""
    if not is_id(repository):
        return None
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    try:
        found = try_to_load_from_cache(repository, "config.json")
    except HFValidationError:
        return None
    return Path(found).parent if isinstance(found, str) else None


def repository(path: PurePath) -> str | None:
    """`owner/name` of a snapshot's directory in the cache; None for another directory."""
    parts = path.parts[-3:]
    if len(parts) < 3 or parts[1] != "snapshots" or not parts[0].startswith("models--"):
        return None
    return parts[0].removeprefix("models--").replace("--", "/", 1)


def blobs_of(path: Path) -> Path | None:
    """Where the files of a snapshot lie, for a directory in it; None for another directory."""
    for place in (path, *path.parents):
        if place.parent.name == "snapshots" and "--" in place.parent.parent.name:
            return place.parent.parent / "blobs"
    return None


def directory(repository: str) -> Path:
    """As `cached`. Raises NotFound with the line that downloads it."""
    found = cached(repository)
    if found is None:
        raise NotFound(
            f"{repository} is not in the Hugging Face cache", remedy=f"hf download {repository}"
        )
    return found
