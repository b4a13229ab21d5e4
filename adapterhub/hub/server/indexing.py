"""The adapters on main of the hub's model repositories, in the registry; tags, for the listing.

A thread of its own follows the main branches: after a commit it is told, after a restart it finds
by itself what was left over. What cannot be added has its reason in the repository's info.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from functools import partial
from typing import Any

from adapterhub.errors import AdapterHubError
from adapterhub.hub.server import facts, infos, logs, takeover
from adapterhub.hub.state.errors import RepoNotFound, RevisionNotFound
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
        self._names = threading.Lock()  # held for moments: nobody waits for a large adapter
        self._at: int | None = None  # the key of the repository in work
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
        """Says that something moved; a number for `has_seen`."""
        with self._state:
            self._asked += 1
            self._state.notify_all()
            return self._asked

    def has_seen(self, number: int) -> bool:
        """Whether all that was told up to `number` is in the index."""
        return self._closing or self._done >= number

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
            work = partial(self._index_if_there, repository, commit)
            if not self._guarded(str(repository.id), work):
                self._broken.add((repository.key, commit))

    def _guarded(self, what: str, work: Callable[[], None]) -> bool:
        try:
            work()
        except Exception as error:  # one repository must not stop the others
            logs.failure("index", error, repository=what)
            return False
        return True

    def _index_if_there(self, repository: Repository, commit: str) -> None:
        with suppress(RepoNotFound, RevisionNotFound):  # since it was listed
            self._index(repository, commit)

    def _index(self, repository: Repository, commit: str) -> None:
        with self._names:
            repository = self._hub.repositories.again(repository)  # it may have been moved
            self._at = repository.key
        info = dict(repository.info)
        try:
            said = facts.gather(self._hub, self._registry.store, repository, commit)
            found: dict[str, Any] = {"adapters": [], "problems": []}
            if repository.id.kind == "model":
                found = takeover.take(self._registry, self._hub, repository, commit)
            info = infos.as_info(said, found)
            self._hub.repositories.mark_indexed(repository, commit, labels=info["tags"], info=info)
        finally:
            with self._names:
                self._at = None
            self._settle(replace(repository, info=info))
        logs.event(
            logging.INFO,
            "indexed",
            repository=str(repository.id),
            commit=commit,
            adapters=takeover.names(found) or None,
            problems=found["problems"] or None,
        )

    def _settle(self, repository: Repository) -> None:
        """Does what `forget` or `follow` left to us, since they came meanwhile."""
        with self._names:
            try:
                now = self._hub.repositories.again(repository)
            except RepoNotFound:
                self._remove(repository)
            else:
                if now.id != repository.id:
                    self._rename(now)

    def forget(self, repository: Repository) -> None:
        """Takes the names of a deleted repository out of the registry; `rollback` undoes it."""
        with self._names:
            if self._at != repository.key:
                self._remove(repository)

    def _remove(self, repository: Repository) -> None:
        for name in takeover.names(repository.info):
            try:
                if takeover.ours(self._registry.store, self._hub, repository, name):
                    takeover.remove(self._registry, name)
            except AdapterHubError as error:
                logs.failure("index", error, name=name)

    def follow(self, repository: Repository) -> None:
        """Renames in the registry what a moved repository has there."""
        with self._names:
            now = self._hub.repositories.again(repository)
            if self._at != now.key and now.indexed is not None:
                self._rename(now)

    def _rename(self, now: Repository) -> None:
        info = takeover.renamed(self._registry, self._hub, now)
        labels, commit = info.get("tags", []), str(now.indexed)
        self._hub.repositories.mark_indexed(now, commit, labels=labels, info=info)
