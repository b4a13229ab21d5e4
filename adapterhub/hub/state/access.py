"""Who may read, write, create and delete which repository.

    nobody known   reads public repositories, on loopback too (not even those without public_read)
    role read      reads public ones and those of its namespaces
    role write     writes, creates, moves and deletes in its namespaces, too

`*` is every namespace, and the only one that has ids without a namespace.
"""

from __future__ import annotations

from adapterhub.hub.state.model import Caller
from adapterhub.hub.state.names import RepoId
from adapterhub.hub.state.repositories import Repositories, Repository


class Access:
    def __init__(self, repositories: Repositories, *, public_read: bool = True) -> None: ...

    def see(self, caller: Caller, id: RepoId) -> Repository:
        """To show that it exists, its card and names of its files. Raises RepoNotFound."""
        raise NotImplementedError

    def read(self, caller: Caller, id: RepoId) -> Repository:
        """To hand out contents. Raises RepoNotFound, GatedRepo."""
        raise NotImplementedError

    def write(self, caller: Caller, id: RepoId) -> Repository:
        """To commit, move, configure, delete. Raises RepoNotFound, Unauthorized, Forbidden."""
        raise NotImplementedError

    def create(self, caller: Caller, id: RepoId) -> None:
        """To create it, or to move one to that id. Raises Unauthorized, Forbidden."""
        raise NotImplementedError

    def readable(self, caller: Caller) -> tuple[str, ...] | None:
        """Namespaces whose private repositories it may see (for `repositories.list`); None: all."""
        raise NotImplementedError
