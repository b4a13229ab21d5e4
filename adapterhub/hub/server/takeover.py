"""From a commit of a hub's repository to versions in the registry, and what is told of them.

`Ns/Name` becomes `ns/name`, an adapter in its folder `sub` `ns/name--sub`. A name of the registry
that came from elsewhere is never touched.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from adapterhub.adapter import Reading
from adapterhub.errors import AdapterHubError, AlreadyExists, NotFound, NotSupported
from adapterhub.hub.server import cards, facts
from adapterhub.hub.state.errors import RevisionNotFound
from adapterhub.hub.state.names import RepoId
from adapterhub.hub.state.repositories import Repository
from adapterhub.hub.state.state import Hub
from adapterhub.hub.state.trees import File
from adapterhub.registry import Registry, inspection, loading, runs
from adapterhub.store import Store

MOST_FILES = 5000
MOST_ADAPTERS, MOST_PROBLEMS, LONGEST = 200, 20, 500
MOST_SECONDS = 300  # then it is the next repository's turn
_PAGE = 1000
ORIGIN = ("hub", "commit", "subfolder")


def take(registry: Registry, hub: Hub, repository: Repository, commit: str) -> dict[str, Any]:
    """`{"adapters": […], "problems": [sentence, …]}`, both JSON.

    An adapter has `subfolder`, `name` and `version` in the registry (None where it was refused),
    `method`, `rank`, `base`, and the `tags` that follow. Adds what is new, and removes from the
    registry what the commit before had and this one has not.
    """
    adapters: list[dict[str, Any]] = []
    problems: list[str] = []
    with tempfile.TemporaryDirectory(prefix="adapterhub-") as directory:
        root = Path(directory)
        try:
            _lay_out(registry.store, hub, repository, commit, root)
            found = list(runs.find(root))
        except AdapterHubError as error:
            return {"adapters": [], "problems": [error.message[:LONGEST]]}
        taker = _Taker(registry, hub, repository, commit, root)
        if len(found) > MOST_ADAPTERS:
            problems.append(f"only the first {MOST_ADAPTERS} of {len(found)} adapters are taken")
        until = time.monotonic() + MOST_SECONDS
        for path in found[:MOST_ADAPTERS]:
            if time.monotonic() > until:
                problems.insert(0, f"not all of it was read, for that took over {MOST_SECONDS} s")
                break
            try:
                adapters.append(taker.take(path))
            except AdapterHubError as error:
                problems.append(taker.sentence(path, error))
    gone = set(names(repository.info)) - set(names({"adapters": adapters}))
    for name in sorted(gone):
        if ours(registry.store, hub, repository, name):
            remove(registry, name)
    return {"adapters": adapters, "problems": problems[:MOST_PROBLEMS]}


def names(info: Mapping[str, Any]) -> list[str]:
    """Names in the registry that a repository's info says are its own."""
    return [each["name"] for each in info.get("adapters", ()) if each.get("version")]


def remove(registry: Registry, name: str) -> None:
    """Softly: `adapterhub rollback NAME latest` brings it back."""
    if registry.store.exists(name):
        registry.rm(name)


def name_of(id: RepoId, subfolder: str) -> str:
    """Only the folder is respelled: `ns_/x` must not come by a name of `ns/x`."""
    base = str(id).lower()
    if not subfolder:
        return base
    folder = runs.spelled(subfolder.replace("/", "--"))
    return f"{base}--{folder.replace('/', '--')}"


def ours(store: Store, hub: Hub, repository: Repository, name: str) -> bool:
    """Whether what the name stands for came last from this very repository."""
    try:
        events = store.history(name)
    except NotFound:
        return False
    origins = [event.fields["origin"] for event in events if event.fields.get("origin")]
    origin = origins[-1] if origins else {}
    if not all(key in origin for key in ORIGIN):
        return False
    if name in names(repository.info):
        return True
    try:
        return hub.commit_of(repository, str(origin["commit"])).id == str(origin["commit"])
    except RevisionNotFound:
        return False


def _lay_out(store: Store, hub: Hub, repository: Repository, commit: str, root: Path) -> None:
    """Links to the store's blobs, in the folders of the commit. Raises NotSupported."""
    count, after = 0, ""
    while True:
        page = hub.tree(repository, commit, recursive=True, limit=_PAGE, after=after)
        for entry in page.entries:
            path = root / entry.path
            if isinstance(entry.node, File):
                path.symlink_to(store.blob_path(entry.node.digest).resolve())
            else:
                path.mkdir()
        count += len(page.entries)
        if page.after is None:
            return
        if count >= MOST_FILES:
            raise NotSupported(
                f"{repository.id} has more than {MOST_FILES} files; no adapter is looked for",
                remedy="keep adapters in repositories of their own",
            )
        after = page.after


class _Taker:
    """Adapters of one commit, laid out below `root`."""

    def __init__(
        self, registry: Registry, hub: Hub, repository: Repository, commit: str, root: Path
    ) -> None:
        self._registry, self._hub, self._repository = registry, hub, repository
        self._commit, self._root = commit, root
        self._taken: dict[str, str] = {}  # name → subfolder

    def take(self, path: Path) -> dict[str, Any]:
        """Raises what keeps it out of the registry."""
        subfolder = self._subfolder(path)
        reading = loading.read(path, False)
        name = name_of(self._repository.id, subfolder)
        told = {"subfolder": subfolder, "name": name, "version": None, **described(reading)}
        if self._taken.setdefault(name, subfolder) != subfolder:
            other = self._taken[name] or "the root"
            raise AlreadyExists(
                f"its name {name} is that of the adapter in {other}", remedy="rename the folder"
            )
        self._refuse_foreign(name)
        origin = dict(zip(ORIGIN, (str(self._repository.id), self._commit, subfolder), strict=True))
        added = self._registry.add(path, name=name, origin=origin, follow_card=True)
        return told | {"version": added.digest}

    def _refuse_foreign(self, name: str) -> None:
        store = self._registry.store
        if store.exists(name) and not ours(store, self._hub, self._repository, name):
            raise _foreign(name)

    def _subfolder(self, path: Path) -> str:
        below = path.relative_to(self._root)
        return (below.with_suffix("") if path.is_file() else below).as_posix().removeprefix(".")

    def sentence(self, path: Path, error: AdapterHubError) -> str:
        """What is wrong, told without the place where the files lay for the moment."""
        where = path.relative_to(self._root).as_posix()
        text = f"{error.message} ({error.remedy})" if error.remedy else error.message
        text = text.replace(str(path), where).replace(str(self._root), str(self._repository.id))
        text = text if where == "." else f"{where}: {text.removeprefix(f'{where}: ')}"
        return text[:LONGEST]


def _foreign(name: str) -> AdapterHubError:
    return AlreadyExists(
        f"{name} in the registry came from elsewhere, and is left as it is",
        remedy=f"adapterhub mv {name} OTHER, and push again",
    )


def described(reading: Reading) -> dict[str, Any]:
    """For people and for the listing's filters; empty values where the adapter cannot be read."""
    adapter = reading.adapter
    if adapter is None:
        return {"method": reading.method, "rank": None, "base": None, "tags": []}
    base = adapter.base.name[:LONGEST] if adapter.base.name else None
    bases = (base,) if base and cards.HUB_ID.fullmatch(base) else ()
    return {
        "method": adapter.method,
        "rank": inspection.rank_summary(adapter),
        "base": base,
        "tags": [adapter.method, "adapter", *facts.base_tags(bases, "adapter")],
    }


def renamed(registry: Registry, hub: Hub, repository: Repository) -> dict[str, Any]:
    """The info of a repository that has a new id, its names in the registry moved along.

    A name that cannot be moved, where the new one is taken, stays; the info then says why. One that
    somebody has taken over stays theirs.
    """
    store, info = registry.store, repository.info
    adapters, problems = [], list(info.get("problems", ()))
    for each in info.get("adapters", ()):
        old, name = each["name"], name_of(repository.id, each["subfolder"])
        try:
            if each["version"] and name != old and store.exists(old):
                if not ours(store, hub, repository, old):
                    raise _foreign(old)
                registry.mv(old, name)
            adapters.append({**each, "name": name})
        except AdapterHubError as error:
            problems.append(error.message)
            adapters.append(each)
    return {**info, "adapters": adapters, "problems": problems}
