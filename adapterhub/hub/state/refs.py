"""Branches, tags, and what a revision means."""

from __future__ import annotations

from adapterhub.hub.state.model import Ref
from adapterhub.hub.state.repositories import Repository


class Refs:
    def resolve(self, repository: Repository, revision: str) -> str:
        """A commit's id. Raises RevisionNotFound."""
        raise NotImplementedError

    def list(self, repository: Repository) -> tuple[Ref, ...]:
        """Branches (`refs/heads/`), tags (`refs/tags/`), pull requests (`refs/pr/`), by name."""
        raise NotImplementedError
