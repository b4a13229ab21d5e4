"""Pull requests, refs/pr/N."""

from __future__ import annotations

from adapterhub.hub.state.model import Pull
from adapterhub.hub.state.repositories import Repository


class Pulls:
    def get(self, repository: Repository, number: int) -> Pull:
        """Raises NotFound."""
        raise NotImplementedError

    def list(
        self,
        repository: Repository,
        *,
        status: str = "",
        author: str = "",
        limit: int = 50,
        offset: int = 0,
    ) -> tuple[Pull, ...]:
        raise NotImplementedError

    def count(self, repository: Repository, *, status: str = "", author: str = "") -> int:
        raise NotImplementedError

    def set_status(self, repository: Repository, number: int, status: str) -> Pull:
        """draft, open or closed. Raises NotFound, InvalidRequest."""
        raise NotImplementedError

    def rename(self, repository: Repository, number: int, title: str) -> Pull:
        raise NotImplementedError
