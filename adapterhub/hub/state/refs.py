"""Branches, tags, and what a revision means."""

from __future__ import annotations

import re
import time
from collections.abc import Callable

from adapterhub.hub.state.database import Database
from adapterhub.hub.state.errors import Conflict, InvalidRequest, RevisionNotFound
from adapterhub.hub.state.limits import Limits
from adapterhub.hub.state.model import Ref
from adapterhub.hub.state.names import BRANCH, PULL, TAG, check_ref_name
from adapterhub.hub.state.paths import shown
from adapterhub.hub.state.repositories import Repository

MAIN = "main"
_COMMIT = re.compile(r"[0-9a-f]{5,40}")
_SHORTEST = 7


class Refs:
    def __init__(
        self, database: Database, limits: Limits, now: Callable[[], float] = time.time
    ) -> None:
        self._database = database
        self._limits = limits
        self._now = now

    def resolve(self, repository: Repository, revision: str) -> str:
        """A commit's id. A branch comes before a tag, both before a commit.

        Raises RevisionNotFound, also for the beginning of several commits.
        """
        found = self._by_name(repository, revision)
        if found is not None:
            return found.target
        commits = self.by_digits(repository, revision) if len(revision) >= _SHORTEST else ()
        if len(commits) > 1:
            raise RevisionNotFound(
                f"{revision} is the beginning of several commits of {repository.id}",
                remedy="give more digits",
            )
        if not commits:
            raise _no_revision(repository, revision)
        return commits[0]

    def writable(self, repository: Repository, revision: str) -> Ref:
        """The branch or pull request that a commit to this revision goes to.

        Raises InvalidRequest for a tag or a commit, RevisionNotFound.
        """
        found = self._by_name(repository, revision)
        if found is not None and not found.name.startswith(TAG):
            return found
        if found is not None or self.by_digits(repository, revision):
            raise InvalidRequest(
                f"{shown(revision)} of {repository.id} is not a branch and cannot be changed",
                remedy="commit to a branch, or to refs/pr/N",
            )
        raise _no_revision(repository, revision)

    def list(self, repository: Repository) -> tuple[Ref, ...]:
        """Branches (`refs/heads/`), pull requests (`refs/pr/`), tags (`refs/tags/`), by name."""
        sql = "SELECT name, target, message FROM refs WHERE repository = ? ORDER BY name"
        return tuple(Ref(*row) for row in self._database.rows(sql, (repository.key,)))

    def create_branch(self, repository: Repository, name: str, start: str | None = None) -> Ref:
        """At `start` (a revision; main where None). Raises Conflict, RevisionNotFound."""
        check_ref_name(name, "branch")
        return self._create(repository, f"{BRANCH}{name}", start or MAIN, "")

    def create_tag(
        self, repository: Repository, name: str, revision: str = MAIN, message: str = ""
    ) -> Ref:
        """Raises Conflict, RevisionNotFound."""
        check_ref_name(name, "tag")
        self._limits.check("message", len(message), "characters in a tag's message")
        return self._create(repository, f"{TAG}{name}", revision, message)

    def delete_branch(self, repository: Repository, name: str) -> None:
        """Raises InvalidRequest for main, RevisionNotFound."""
        if name == MAIN:
            raise InvalidRequest(
                f"{MAIN} of {repository.id} cannot be deleted", remedy="delete the repository"
            )
        self._delete(repository, f"{BRANCH}{name}")

    def delete_tag(self, repository: Repository, name: str) -> None:
        """Raises RevisionNotFound."""
        self._delete(repository, f"{TAG}{name}")

    # --- for those who hold a transaction

    def set(self, repository: Repository, name: str, target: str, message: str = "") -> Ref:
        """Makes or moves a ref, within a transaction; the repository counts as changed."""
        with self._database.transaction() as connection:
            connection.execute(
                "INSERT INTO refs (repository, name, target, message) VALUES (?, ?, ?, ?)"
                " ON CONFLICT DO UPDATE SET target = excluded.target",
                (repository.key, name, target, message),
            )
            sql = "UPDATE repositories SET updated = ? WHERE key = ?"
            connection.execute(sql, (int(self._now()), repository.key))
        return Ref(name, target, message)

    def check_room(self, repository: Repository) -> None:
        """Whether one more is allowed. Raises TooLarge."""
        sql = "SELECT count(*) FROM refs WHERE repository = ?"
        count = self._database.rows(sql, (repository.key,))[0][0] + 1
        remedy = "delete branches or tags that are not needed"
        self._limits.check("refs", count, f"branches, tags and such in {repository.id}", remedy)

    def _create(self, repository: Repository, name: str, start: str, message: str) -> Ref:
        with self._database.transaction():
            _, _, short = name.split("/", 2)
            for each in (f"{BRANCH}{short}", f"{TAG}{short}"):
                if self._exact(repository, each):
                    raise Conflict(
                        f"{repository.id} has {each} already", remedy="choose another name"
                    )
            target = self.resolve(repository, start)
            self.check_room(repository)
            return self.set(repository, name, target, message)

    def _delete(self, repository: Repository, name: str) -> None:
        with self._database.transaction() as connection:
            sql = "DELETE FROM refs WHERE repository = ? AND name = ?"
            if not connection.execute(sql, (repository.key, name)).rowcount:
                raise _no_revision(repository, name)
            sql = "UPDATE repositories SET updated = ? WHERE key = ?"
            connection.execute(sql, (int(self._now()), repository.key))

    def _by_name(self, repository: Repository, revision: str) -> Ref | None:
        if revision.startswith((BRANCH, TAG, PULL)):
            return self._exact(repository, revision)
        branch = self._exact(repository, f"{BRANCH}{revision}")
        return branch or self._exact(repository, f"{TAG}{revision}")

    def _exact(self, repository: Repository, name: str) -> Ref | None:
        if not name.isprintable():  # no such name was ever taken, and SQLite fails on surrogates
            return None
        sql = "SELECT name, target, message FROM refs WHERE repository = ? AND name = ?"
        row = self._database.row(sql, (repository.key, name))
        return Ref(*row) if row else None

    def by_digits(self, repository: Repository, digits: str) -> tuple[str, ...]:
        """Up to two commits that begin with these digits."""
        if not _COMMIT.fullmatch(digits):
            return ()
        sql = "SELECT id FROM commits WHERE repository = ? AND id >= ? AND id < ? LIMIT 2"
        rows = self._database.rows(sql, (repository.key, digits, digits + "g"))
        return tuple(id for (id,) in rows)


def _no_revision(repository: Repository, revision: str) -> RevisionNotFound:
    return RevisionNotFound(
        f"{repository.id} has no revision {shown(revision)}",
        remedy="list its branches and tags, or create the branch first",
    )
