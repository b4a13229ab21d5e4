"""What lies on the hub at one revision, as far as a push needs to know."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from adapterhub import schema, strictjson
from adapterhub.errors import AdapterHubError, RemoteError
from adapterhub.hub.client.network import named_errors, quiet
from adapterhub.hub.client.version import README, Outgoing
from adapterhub.registry.checkout import MANIFEST

if TYPE_CHECKING:
    from huggingface_hub import HfApi

_READ_BYTES = 1024 * 1024
_INFO_SECONDS = 30.0


@dataclass(frozen=True)
class Entry:
    """A file there. Small ones are known by the sha1 of git, large ones (LFS) by their sha256."""

    size: int
    git_sha1: str
    sha256: str | None

    def holds(self, file: Outgoing) -> bool:
        if self.size != file.size:
            return False
        if self.sha256 is not None:
            return self.sha256 == file.sha256
        return self.git_sha1 == file.git_sha1


@dataclass(frozen=True)
class Remote:
    """`has_branch` is False where only `main` was found, from which the branch will start.

    `commit` is the head that was looked at, `manifest` the adapter's that lies there.
    """

    exists: bool = False
    private: bool | None = None
    has_branch: bool = False
    commit: str | None = None
    entries: Mapping[str, Entry] = field(default_factory=lambda: MappingProxyType({}))
    readme: str | None = None
    manifest: Mapping[str, Any] | None = None


def look(api: HfApi, repo: str, revision: str, paths: Iterable[str]) -> Remote:
    """The repository at the branch `revision`: of `paths`, and of what an earlier push put there.

    Raises RemoteError; a repository that is not there is no error.
    """
    found = _info(api, repo, revision)
    has_branch = found is not None
    if found is None:
        found = _info(api, repo, None)
    if found is None:
        return Remote()
    private, commit = found
    if commit is None:
        return Remote(True, private, has_branch)
    entries = _entries(api, repo, commit, [*paths, README, MANIFEST])
    with tempfile.TemporaryDirectory(prefix="adapterhub-") as directory:
        readme = _read(api, repo, commit, README, entries, Path(directory))
        manifest = _manifest(_read(api, repo, commit, MANIFEST, entries, Path(directory)))
    earlier = [entry["path"] for entry in (manifest or {}).get("files", ())]
    if more := [path for path in earlier if path not in entries]:
        entries |= _entries(api, repo, commit, more)
    text = _decoded(readme, repo) if readme is not None else None
    return Remote(True, private, has_branch, commit, entries, text, manifest)


def _decoded(readme: bytes, repo: str) -> str:
    try:
        return readme.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise RemoteError(
            f"README.md of {repo} is not UTF-8 from byte {error.start} on, and cannot be extended",
            remedy="save it as UTF-8 on the hub, and push again",
        ) from error


def _info(api: HfApi, repo: str, revision: str | None) -> tuple[bool | None, str | None] | None:
    """Whether it is private, and the commit; None where there is no such repository or revision."""
    from huggingface_hub.errors import (
        GatedRepoError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    with named_errors(f"reading {repo}", repo=repo, safe="nothing was sent"):
        try:
            info = api.model_info(repo, revision=revision, timeout=_INFO_SECONDS)
        except GatedRepoError:
            raise
        except (RepositoryNotFoundError, RevisionNotFoundError):
            return None
    return info.private, info.sha


def _entries(api: HfApi, repo: str, commit: str, paths: list[str]) -> dict[str, Entry]:
    from huggingface_hub.hf_api import RepoFile

    with named_errors(f"listing the files of {repo}", repo=repo, safe="nothing was sent"):
        found = api.get_paths_info(repo, list(dict.fromkeys(paths)), revision=commit)
        return {
            item.path: Entry(item.size, item.blob_id, item.lfs.sha256 if item.lfs else None)
            for item in found
            if isinstance(item, RepoFile)
        }


def _read(
    api: HfApi, repo: str, commit: str, path: str, entries: Mapping[str, Entry], directory: Path
) -> bytes | None:
    """The bytes of a small file; None where there is none. Raises RemoteError."""
    if path not in entries:
        return None
    if entries[path].size > _READ_BYTES:
        raise RemoteError(
            f"{path} of {repo} has {entries[path].size} bytes, and at most {_READ_BYTES} are read",
            remedy="shorten it on the hub, and push again",
        )
    doing = f"reading {path} of {repo}"
    with named_errors(doing, repo=repo, safe="nothing was sent"), quiet(bars=False):
        local = api.hf_hub_download(repo, path, revision=commit, local_dir=directory)
        return Path(local).read_bytes()


def _manifest(data: bytes | None) -> Mapping[str, Any] | None:
    """That of an adapter; None for a merge's, and for what is none at all."""
    if data is None:
        return None
    try:
        manifest = strictjson.loads(data)
        schema.check(manifest, "manifest", what=MANIFEST)
    except (AdapterHubError, ValueError):
        return None
    found: dict[str, Any] = manifest
    return found
