"""What is remembered of repositories: lists of commits, which never change, for work offline."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from adapterhub import digest, strictjson
from adapterhub.errors import AdapterHubError, RemoteError
from adapterhub.hub.client import network
from adapterhub.hub.client.pull_listing import Entry, Listing, Spec, checked, is_commit
from adapterhub.store import files

_LIMIT_BYTES = 64 * 1024 * 1024
_MAX_REVISIONS = 1_000
_REVISIONS = "revisions.json"


class Records:
    """Below the registry's `cache/hub/`, one folder per endpoint and repository."""

    def __init__(self, home: Path, spec: Spec) -> None:
        key = digest.of_bytes(f"{network.host()}\n{spec.repository}".encode())
        self._tmp = home / "tmp"
        self._folder = home / "cache" / "hub" / key.removeprefix(digest.PREFIX)[:40]
        self._spec = spec

    # --- the commit of a revision, as it was last seen

    def commit(self, revision: str | None) -> str | None:
        found = self._read(_REVISIONS).get(revision or "main")
        return found if isinstance(found, str) and is_commit(found) else None

    def remember(self, revision: str | None, commit: str) -> None:
        known = self._read(_REVISIONS)
        if known.get(revision or "main") != commit and len(known) < _MAX_REVISIONS:
            self._write(_REVISIONS, known | {revision or "main": commit})

    # --- the list of a commit

    def listing(self, commit: str) -> Listing | None:
        rows = self._read(f"{commit}.json").get("entries")
        try:
            return (
                checked(self._spec, commit, [Entry(*row) for row in rows or ()]) if rows else None
            )
        except (AdapterHubError, TypeError, AttributeError):
            return None  # somebody wrote into it

    def keep(self, listing: Listing) -> None:
        rows = [[e.path, e.size, e.sha256, e.blob] for e in listing.entries]
        self._write(f"{listing.commit}.json", {"entries": rows})

    def _read(self, name: str) -> dict[str, Any]:
        try:
            return strictjson.load_object(self._folder / name, limit=_LIMIT_BYTES)
        except AdapterHubError:
            return {}

    def _write(self, name: str, document: dict[str, Any]) -> None:
        """It is only a cache: what the disk refuses is asked for again."""
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            with files.temporary(self._tmp) as (fd, path):
                files.write_all(fd, json.dumps(document).encode(), path)
                path.replace(self._folder / name)
        except OSError:
            return


# --- offline ----------------------------------------------------------------------------------


def is_offline() -> bool:
    from huggingface_hub import constants

    return bool(constants.HF_HUB_OFFLINE)


def offline_commit(spec: Spec, revision: str | None, records: Records) -> str:
    """The commit that a revision meant when it was last asked for. Raises RemoteError."""
    if revision is not None and is_commit(revision):
        return revision
    found = records.commit(revision) or _hf_commit(spec, revision or "main")
    if found is None:
        raise not_at_hand(spec, f"which commit is {revision or 'main'} is not known")
    return found


def _hf_commit(spec: Spec, revision: str) -> str | None:
    try:
        found = (_repository_cache(spec) / "refs" / revision).read_text("ascii").strip()
    except (OSError, ValueError):
        return None
    return found if is_commit(found) else None


def offline_listing(spec: Spec, commit: str) -> Listing:
    """From the list that `hf download` left in its cache. Raises RemoteError."""
    try:
        from huggingface_hub import get_cached_repo_tree
        from huggingface_hub.errors import CachedRepoTreeNotFoundError as NoList
    except ImportError as error:  # older ones keep no list
        raise not_at_hand(spec, f"what belongs to commit {commit[:12]} is not known") from error
    try:
        tree = get_cached_repo_tree(spec.repository, revision=commit)
        return checked(spec, commit, _cached_entries(spec, commit, tree))
    except (NoList, OSError, ValueError, TypeError, KeyError) as error:
        raise not_at_hand(spec, f"what belongs to commit {commit[:12]} is not known") from error


def _cached_entries(spec: Spec, commit: str, tree: list[Any]) -> Iterator[Entry]:
    """A file's name among the blobs is the digest that the server gave: of LFS files the sha256."""
    snapshot = _repository_cache(spec) / "snapshots" / commit
    for item in tree:
        path = snapshot / item.path
        name = path.readlink().name if path.is_symlink() else ""
        sha256 = name if len(name) == 64 else ""
        yield Entry(item.path, int(item.size), sha256, "" if sha256 else str(item.blob_id))


def _repository_cache(spec: Spec) -> Path:
    from huggingface_hub import constants

    return Path(constants.HF_HUB_CACHE) / f"models--{spec.repository.replace('/', '--')}"


def not_at_hand(spec: Spec, why: str) -> RemoteError:
    return RemoteError(
        f"{spec.repository} cannot be pulled offline: {why} (HF_HUB_OFFLINE is set)",
        remedy="unset HF_HUB_OFFLINE and repeat the command",
        tries=0,
    )
