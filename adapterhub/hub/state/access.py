"""Who may read, write, create and delete which repository.

    nobody known   reads public repositories, on loopback too (not even those without public_read)
    role read      reads public ones and those of its namespaces
    role write     writes, creates, moves and deletes in its namespaces, too

`*` is every namespace, and the only one that has ids without a namespace.
"""

from __future__ import annotations

from collections.abc import Iterable

from adapterhub.hub.state.errors import Forbidden, GatedRepo, Unauthorized
from adapterhub.hub.state.model import ALL, Caller
from adapterhub.hub.state.names import RepoId
from adapterhub.hub.state.repositories import Repositories, Repository, missing


class Access:
    def __init__(self, repositories: Repositories, *, public_read: bool = True) -> None:
        self._repositories = repositories
        self._public_read = public_read

    def see(self, caller: Caller, id: RepoId) -> Repository:
        """To show that it exists, its card and the names of its files. Raises RepoNotFound."""
        # the whole row is not read before: the time it takes would tell that it is there
        private = self._repositories.is_private(id)
        may_see = not private and self._may_see_public(caller)
        if private is None or not (may_see or _is_member(caller, id)):
            raise missing(id)
        return self._repositories.get(id)

    def read(self, caller: Caller, id: RepoId) -> Repository:
        """To hand out contents. Raises RepoNotFound, GatedRepo."""
        repository = self.see(caller, id)
        if repository.gated and not _is_member(caller, id):
            raise GatedRepo(
                f"access to {id} is restricted", remedy=f"use a token of {id.namespace or ALL}"
            )
        return repository

    def write(self, caller: Caller, id: RepoId) -> Repository:
        """To commit, move, configure, delete. Raises RepoNotFound, Unauthorized, Forbidden."""
        repository = self.see(caller, id)
        self.create(caller, id)
        return repository

    def create(self, caller: Caller, id: RepoId) -> None:
        """To create it, or to move one to that id. Raises Unauthorized, Forbidden."""
        if caller.token is None:
            raise Unauthorized(
                f"nobody may write {id} without a token", remedy="send one: adapterhub token create"
            )
        if not _is_member(caller, id):
            raise Forbidden(
                f"this token is not for {id.namespace or 'ids without a namespace'}",
                remedy=f"its namespaces: {', '.join(caller.token.namespaces)}",
            )
        if caller.token.role != "write":
            raise Forbidden(f"this token may read {id}, not write it", remedy="use one that may")

    def list(
        self,
        caller: Caller,
        *,
        kind: str = "model",
        namespace: str | None = None,
        search: str = "",
        labels: Iterable[str] = (),
        gated: bool | None = None,
        order: str = "updated",
        ascending: bool = False,
        limit: int = 100,
        after: tuple[int, int] | None = None,
    ) -> tuple[Repository, ...]:
        """A page of what this caller may see; see `Repositories.list`."""
        if not self._may_see_public(caller):
            return ()
        readable = caller.token.namespaces if caller.token else ()
        return self._repositories.list(
            kind=kind,
            namespace=namespace,
            search=search,
            labels=labels,
            gated=gated,
            order=order,
            ascending=ascending,
            readable=None if ALL in readable else readable,
            limit=limit,
            after=after,
        )

    def _may_see_public(self, caller: Caller) -> bool:
        return self._public_read or caller.token is not None


def _is_member(caller: Caller, id: RepoId) -> bool:
    if caller.token is None:
        return False
    return ALL in caller.token.namespaces or (
        bool(id.namespace) and id.namespace in caller.token.namespaces
    )
