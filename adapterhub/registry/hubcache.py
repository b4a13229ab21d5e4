"""Models in the Hugging Face cache: looked up, never downloaded unasked."""

from __future__ import annotations

from pathlib import Path

from adapterhub.errors import NotFound


def cached(repository: str) -> Path | None:
    """The newest cached snapshot of a model repository (`owner/name`), or None."""
    if repository.count("/") > 1:
        return None
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    try:
        found = try_to_load_from_cache(repository, "config.json")
    except HFValidationError:
        return None
    return Path(found).parent if isinstance(found, str) else None


def directory(repository: str) -> Path:
    """As `cached`. Raises NotFound with the line that downloads it."""
    found = cached(repository)
    if found is None:
        raise NotFound(
            f"{repository} is no registered base, no directory, and not in the Hugging Face cache",
            remedy=f"hf download {repository}",
        )
    return found
