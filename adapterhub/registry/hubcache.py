"""Models in the Hugging Face cache: looked up, never downloaded unasked."""

from __future__ import annotations

import re
from pathlib import Path, PurePath

from adapterhub.errors import NotFound

_COMMIT = re.compile(r"[0-9a-f]{40}")
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


def snapshot(path: Path) -> Path:
    """The newest snapshot where `path` is a repository's folder in the cache; else `path` itself.

    `models--owner--name` holds `refs/main`, the commit of the branch as it was last seen.
    """
    snapshots = path / "snapshots"
    if not path.name.startswith("models--") or not snapshots.is_dir():
        return path
    try:
        commit = (path / "refs" / "main").read_text("ascii").strip()
    except (OSError, UnicodeDecodeError):
        commit = ""
    if _COMMIT.fullmatch(commit) and (snapshots / commit).is_dir():
        return snapshots / commit
    found = sorted((p for p in snapshots.iterdir() if p.is_dir()), key=lambda p: p.stat().st_mtime)
    return found[-1] if found else path


def adapter(repository: str) -> Path:
    """The newest cached snapshot of a repository, whatever it holds. Raises NotFound."""
    from huggingface_hub.constants import HF_HUB_CACHE

    place = Path(HF_HUB_CACHE) / f"models--{repository.replace('/', '--')}"
    if not is_id(repository) or not (place / "snapshots").is_dir():
        raise NotFound(
            f"{repository} is not in the Hugging Face cache", remedy=f"hf download {repository}"
        )
    return snapshot(place)


def repository(path: PurePath) -> str | None:
    """`owner/name` of a snapshot's directory in the cache; None for another directory."""
    parts = path.parts[-3:]
    if len(parts) < 3 or parts[1] != "snapshots" or not parts[0].startswith("models--"):
        return None
    return parts[0].removeprefix("models--").replace("--", "/", 1)


def directory(repository: str) -> Path:
    """As `cached`. Raises NotFound with the line that downloads it."""
    found = cached(repository)
    if found is None:
        raise NotFound(
            f"{repository} is not in the Hugging Face cache", remedy=f"hf download {repository}"
        )
    return found
