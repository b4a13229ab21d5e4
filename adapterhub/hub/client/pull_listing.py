"""What a repository says it holds, at one commit. Every word of it is taken for hostile."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from adapterhub.errors import IntegrityError, InvalidName, RemoteError
from adapterhub.hub.client import network, pull_guard
from adapterhub.registry import hubcache

MAX_ENTRIES = 200_000
MAX_PAGES = 1_000
_COMMIT = re.compile(r"[0-9a-f]{40}")
_SHA256 = re.compile(r"[0-9a-f]{64}")
_MAX_PATH = 1_000
_MAX_PART = 255
HUB = "hub:"
MAIN = "main"
NOTHING_ADDED = "nothing was added"


@dataclass(frozen=True)
class Spec:
    """What the user named: `owner/name` (or `name`), and a folder or file in it, "" for all."""

    repository: str
    subfolder: str = ""

    @property
    def shown(self) -> str:
        return f"{self.repository}/{self.subfolder}".rstrip("/")


@dataclass(frozen=True)
class Entry:
    """A file. `sha256` is that of an LFS file; `blob` the git-sha1 of a regular one; else ""."""

    path: str
    size: int
    sha256: str = ""
    blob: str = ""

    @property
    def folder(self) -> str:
        return self.path.rpartition("/")[0]

    @property
    def name(self) -> str:
        return self.path.rpartition("/")[2]


@dataclass(frozen=True)
class Listing:
    """All files of `repository` at `commit`; `odd` ones have names that nothing here would take."""

    endpoint: str
    repository: str
    commit: str
    entries: tuple[Entry, ...]
    odd: int = 0


def parse(text: str) -> Spec:
    """`owner/name[/subfolder]`, or `name`; `hub:` may stand before it. Raises InvalidName."""
    plain = text.removeprefix(HUB)
    first, _, rest = plain.partition("/")
    second, _, subfolder = rest.partition("/")
    repository = f"{first}/{second}" if second else first
    parts = [part for part in subfolder.split("/") if part not in ("", ".")]
    well = hubcache.is_id(repository) and "//" not in plain and not plain.startswith("/")
    if not well or any(not is_plain(part) for part in parts):
        raise InvalidName(
            f"{text!a} names no repository of a hub",
            remedy="spell it OWNER/NAME, or OWNER/NAME/SUBFOLDER; HF_ENDPOINT names the hub",
        )
    return Spec(repository, "/".join(parts))


def is_commit(text: str) -> bool:
    return _COMMIT.fullmatch(text) is not None


def is_plain(part: str) -> bool:
    """Whether a part of a path is one that any disk takes, and any terminal shows."""
    short = 0 < len(part.encode("utf-8", "surrogatepass")) <= _MAX_PART
    return short and part not in (".", "..") and part.isprintable() and "\\" not in part


def folded(path: str) -> str:
    """As a disk that knows no case, and one spelling of each accent, would see it."""
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", path).casefold())


# --- asking -----------------------------------------------------------------------------------


def resolve(spec: Spec, revision: str | None) -> str:
    """The commit that a branch, tag or commit of the repository means now."""
    if revision is not None and is_commit(revision):
        return revision
    doing = f"looking up {spec.repository}"
    api = network.client(doing)
    with (
        pull_guard.watching(),
        network.named_errors(doing, repo=spec.repository, safe=NOTHING_ADDED),
    ):
        info = _understood(lambda: api.model_info(spec.repository, revision=revision or MAIN), spec)
    commit = getattr(info, "sha", None)
    if not isinstance(commit, str) or not is_commit(commit):
        raise _nonsense(spec, f"the commit of {revision or MAIN} is {commit!a:.60}")
    return commit


def ask(spec: Spec, commit: str, on_list: Callable[[int], None] | None = None) -> Listing:
    """Lists every file at `commit`; `on_list` is told of files seen.

    Raises RemoteError for a list that has no end or makes no sense, IntegrityError for a path that
    leads out of the repository.
    """
    doing = f"listing {spec.repository}"
    api = network.client(doing)
    with (
        pull_guard.watching(requests=MAX_PAGES),
        network.named_errors(doing, repo=spec.repository, safe=NOTHING_ADDED),
    ):
        tree = api.list_repo_tree(spec.repository, recursive=True, revision=commit)
        found = _understood(lambda: list(_limited(tree, spec, on_list)), spec)
    return checked(spec, commit, found)


def _limited(
    tree: Iterable[Any], spec: Spec, on_list: Callable[[int], None] | None
) -> Iterator[Entry]:
    for count, item in enumerate(tree):
        if count >= MAX_ENTRIES:
            raise RemoteError(
                f"{spec.repository} lists more than {MAX_ENTRIES:,} files and folders",
                remedy=f"take a part of it: hf download {spec.repository} --include PATTERN",
            )
        if hasattr(item, "blob_id"):  # a file
            yield _entry(item)
            if on_list:
                on_list(1)


def _entry(item: Any) -> Entry:
    """Raises ValueError for what is no path, size or digest."""
    path, size, blob, lfs = item.path, item.size, item.blob_id, item.lfs
    if not isinstance(path, str) or type(size) is not int or size < 0:
        raise ValueError(f"an entry with path {path!a:.60} and size {size!a:.60}")
    if lfs is None:
        known = isinstance(blob, str) and _COMMIT.fullmatch(blob)
        return Entry(path, size, blob=blob if known else "")
    if lfs.size != size:
        raise ValueError(f"{path!a:.60} with two sizes, {size} and {lfs.size!a:.60}")
    known = isinstance(lfs.sha256, str) and _SHA256.fullmatch(lfs.sha256)
    return Entry(path, size, sha256=lfs.sha256 if known else "")


def _understood(call: Callable[[], Any], spec: Spec) -> Any:
    """What `call` gives. Raises RemoteError where huggingface_hub understands no answer."""
    try:
        return call()
    except (TypeError, AttributeError, KeyError, RecursionError) as error:
        raise _nonsense(spec, f"{type(error).__name__}: {error}") from error
    except ValueError as error:
        if type(error) is ValueError or "JSON" in type(error).__name__:
            raise _nonsense(spec, str(error)) from error
        raise


def _nonsense(spec: Spec, what: str) -> RemoteError:
    return RemoteError(
        f"{network.host()} answers about {spec.repository} what makes no sense: "
        f"{network.redacted(what)}",
        remedy="is HF_ENDPOINT a hub?",
    )


# --- checking ---------------------------------------------------------------------------------


def checked(spec: Spec, commit: str, entries: Iterable[Entry]) -> Listing:
    """Raises IntegrityError for a path that leads out of the repository, or is listed twice."""
    kept: dict[str, Entry] = {}
    odd = 0
    for entry in entries:
        parts = entry.path.split("/")
        if "" in parts or "." in parts or ".." in parts or "\0" in entry.path:
            raise _hostile(spec, entry.path, "which leads out of it")
        if len(entry.path) > _MAX_PATH or not all(map(is_plain, parts)):
            odd += 1
            continue
        if entry.path in kept:
            raise _hostile(spec, entry.path, "twice")
        kept[entry.path] = entry
    return Listing(network.host(), spec.repository, commit, tuple(kept.values()), odd)


def _hostile(spec: Spec, path: str, why: str) -> IntegrityError:
    return IntegrityError(
        f"{spec.repository} lists the file {path[:200]!a}, {why}; nothing was downloaded",
        remedy="do not trust this repository, or this hub",
    )


def refuse_twins(listing: Listing, wanted: Iterable[Entry]) -> None:
    """Raises IntegrityError where a disk that knows no case would mix a wanted file up."""
    names: dict[str, str] = {folded(entry.path): entry.path for entry in wanted}
    for entry in listing.entries:
        other = names.get(folded(entry.path), entry.path)
        if other != entry.path:
            raise IntegrityError(
                f"{listing.repository} has two files that differ in case only: {other} and "
                f"{entry.path}; nothing was downloaded",
                remedy="ask its owner to rename one of them",
            )
