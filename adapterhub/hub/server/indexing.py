"""The adapters on main of the hub's model repositories, in the registry; tags, for the listing.

A thread of its own follows the main branches: after a commit it is told, after a restart it finds
by itself what was left over. What cannot be added has its reason in the repository's info.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from typing import Any

from adapterhub.errors import AdapterHubError
from adapterhub.hub.server import facts, infos, logs, takeover
from adapterhub.hub.state.repositories import Repository
from adapterhub.hub.state.state import Hub
from adapterhub.registry import Registry


class Indexer:
    """`start` it once; `moved` tells it of news; `close` waits for the repository in work."""

    def __init__(self, registry: Registry, hub: Hub) -> None:
        self._registry, self._hub = registry, hub
        self._state = threading.Condition()
        self._asked = self._done = 0  # how often it was told, and up to which of these it has seen
        self._closing = False
        self._broken: set[tuple[int, str]] = set()  # not tried again before the next start
        self._thread = threading.Thread(target=self._run, name="indexer", daemon=True)

    def start(self) -> None:
        self.tell()
        self._thread.start()

    def close(self) -> None:
        with self._state:
            self._closing = True
            self._state.notify_all()
        if self._thread.is_alive():
            self._thread.join()

    def tell(self) -> int:
        """Says that something moved; the number to `wait` for."""
        with self._state:
            self._asked += 1
            self._state.notify_all()
            return self._asked

    def wait(self, number: int, seconds: float) -> bool:
        """Until all that was told up to `number` is in the index."""
        with self._state:
            return self._state.wait_for(lambda: self._done >= number or self._closing, seconds)

    def _run(self) -> None:
        while True:
            with self._state:
                self._state.wait_for(lambda: self._closing or self._done < self._asked)
                if self._closing:
                    return
                number = self._asked
            self._guarded("unindexed", self.catch_up)
            with self._state:
                self._done = number
                self._state.notify_all()

    def catch_up(self) -> None:
        """Indexes every main branch that moved since it was last looked at."""
        for repository, commit in self._hub.repositories.unindexed():
            if self._closing:
                return
            if (repository.key, commit) in self._broken:
                continue
            if not self._guarded(str(repository.id), lambda: self._index(repository, commit)):
                self._broken.add((repository.key, commit))

    def _guarded(self, what: str, work: Callable[[], None]) -> bool:
        try:
            work()
        except Exception as error:  # one repository must not stop the others
            logs.failure("index", error, repository=what)
            return False
        return True

    def _index(self, repository: Repository, commit: str) -> None:
        said = facts.gather(self._hub, self._registry.store, repository, commit)
        found: dict[str, Any] = {"adapters": [], "problems": []}
        if repository.id.kind == "model":
            found = takeover.take(self._registry, self._hub, repository, commit, said.bases)
        info = infos.as_info(said, found)
        self._hub.repositories.mark_indexed(repository, commit, labels=info["tags"], info=info)
        logs.event(
            logging.INFO,
            "indexed",
            repository=str(repository.id),
            commit=commit,
            adapters=[each["name"] for each in found["adapters"]] or None,
            problems=found["problems"] or None,
        )

    def forget(self, repository: Repository) -> None:
        """Takes the names of a repository that is gone out of the registry; `rollback` undoes it."""
        for name in takeover.names(repository.info):
            self._quietly(repository, lambda name=name: takeover.remove(self._registry, name))

    def follow(self, old: Repository, new: Repository) -> None:
        """Renames in the registry what a moved repository has there."""
        info = takeover.renamed(self._registry, old, new)
        if old.indexed is not None:
            labels = info.get("tags", [])
            self._hub.repositories.mark_indexed(new, old.indexed, labels=labels, info=info)

    def _quietly(self, repository: Repository, work: Callable[[], None]) -> None:
        try:
            work()
        except AdapterHubError as error:
            logs.failure("index", error, repository=str(repository.id))
