"""Pull requests, refs/pr/N: what somebody proposes for a branch."""

from __future__ import annotations

import time
from collections.abc import Callable

from adapterhub.errors import NotFound
from adapterhub.hub.state.commits import Commits, Text
from adapterhub.hub.state.database import Database
from adapterhub.hub.state.edit import Edit
from adapterhub.hub.state.errors import Conflict, InvalidPath, InvalidRequest
from adapterhub.hub.state.limits import Limits
from adapterhub.hub.state.model import Commit, Pull, Ref
from adapterhub.hub.state.names import BRANCH, PULL
from adapterhub.hub.state.operations import check_text, check_title
from adapterhub.hub.state.refs import Refs
from adapterhub.hub.state.repositories import Repository
from adapterhub.hub.state.trees import File

_SELECT = """
SELECT p.number, p.title, p.description, p.author, p.status, p.target, p.base, f.target, p.merged,
p.created FROM pulls p JOIN refs f ON f.repository = p.repository
AND f.name = 'refs/pr/' || p.number WHERE p.repository = ?
"""
_LIVE = ("draft", "open")
Changed = dict[str, File | None]  # None where a file was deleted


class Pulls:
    def __init__(
        self,
        database: Database,
        refs: Refs,
        commits: Commits,
        limits: Limits,
        now: Callable[[], float] = time.time,
    ) -> None:
        self._database = database
        self._refs = refs
        self._commits = commits
        self._limits = limits
        self._now = now

    def get(self, repository: Repository, number: int) -> Pull:
        """Raises NotFound."""
        row = None
        if 0 < number < 2**63:
            row = self._database.row(f"{_SELECT} AND p.number = ?", (repository.key, number))
        if row is None:
            raise NotFound(
                f"{repository.id} has no pull request {number}", remedy="list its pull requests"
            )
        return Pull(*row)

    def list(
        self,
        repository: Repository,
        *,
        status: str = "",
        author: str = "",
        limit: int = 50,
        offset: int = 0,
    ) -> tuple[Pull, ...]:
        """The newest first. `status`: one of the four, or `live` for draft and open."""
        where, values = _filter(status, author)
        sql = f"{_SELECT}{where} ORDER BY p.number DESC LIMIT ? OFFSET ?"
        rows = self._database.rows(sql, (repository.key, *values, limit, offset))
        return tuple(Pull(*row) for row in rows)

    def count(self, repository: Repository, *, status: str = "", author: str = "") -> int:
        where, values = _filter(status, author)
        sql = f"SELECT count(*) FROM pulls p WHERE p.repository = ?{where}"
        return int(self._database.rows(sql, (repository.key, *values))[0][0])

    def set_status(self, repository: Repository, number: int, status: str) -> Pull:
        """draft, open or closed. Raises NotFound, InvalidRequest."""
        if status not in (*_LIVE, "closed"):
            raise InvalidRequest(
                f"{status!r} is no status of a pull request", remedy="use draft, open or closed"
            )
        return self._update(repository, number, "status", status)

    def rename(self, repository: Repository, number: int, title: str) -> Pull:
        """Raises NotFound, InvalidRequest."""
        return self._update(repository, number, "title", check_title(title, self._limits))

    def open(
        self,
        repository: Repository,
        title: str,
        description: str,
        author: str,
        target: Ref,
        base: Commit,
        head: Commit,
        status: str,
    ) -> Pull:
        """For the branch `target`; `head` is the base or follows it."""
        if not target.name.startswith(BRANCH):
            raise InvalidRequest(
                f"a pull request is for a branch, not for {target.name}", remedy="name a branch"
            )
        title = check_title(title, self._limits)
        description = check_text(description, "description", self._limits)
        with self._database.transaction() as connection:
            self._refs.check_room(repository)
            sql = "SELECT coalesce(max(number), 0) + 1 FROM pulls WHERE repository = ?"
            (number,) = connection.execute(sql, (repository.key,)).fetchone()
            self._refs.set(repository, f"{PULL}{number}", head.id)
            values = (title, description, author, status, target.short, base.id, int(self._now()))
            connection.execute(
                "INSERT INTO pulls (repository, number, title, description, author, status, target,"
                " base, created) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
                (repository.key, number, *values),
            )
            return self.get(repository, number)

    def proposed(self, repository: Repository, base: Commit, fingerprint: str) -> Pull | None:
        """The open pull request that consists of this request upon this base."""
        sql = f"{_SELECT} AND p.status = 'open' AND p.base = ? AND f.target IN (SELECT id FROM"
        sql += " commits WHERE repository = p.repository AND parent = p.base AND fingerprint = ?)"
        row = self._database.row(sql, (repository.key, base.id, fingerprint))
        return Pull(*row) if row else None

    def check_open(self, repository: Repository, number: int) -> Pull:
        """Raises InvalidRequest where it is closed or merged."""
        pull = self.get(repository, number)
        if pull.status not in _LIVE:
            raise InvalidRequest(
                f"pull request {number} of {repository.id} is {pull.status}",
                remedy="open another one",
            )
        return pull

    # --- merging

    def conflicts(self, repository: Repository, number: int) -> tuple[str, ...]:
        """What keeps it from being merged: paths that both sides changed, each in another way."""
        with self._database.snapshot():
            pull = self.get(repository, number)
            if pull.status not in _LIVE:
                return ()
            try:
                self._merged(repository, pull, self._target(repository, pull))
            except Conflict as error:
                return error.details
            return ()

    def merge(self, repository: Repository, number: int, author: str) -> Commit:
        """One commit on the target with all that it changes; the same one if asked again.

        Raises Conflict, InvalidRequest, NotFound, TooLarge.
        """
        with self._database.transaction() as connection:
            pull = self.get(repository, number)
            if pull.merged is not None:
                return self._commits.get(repository, pull.merged)
            self.check_open(repository, number)
            onto = self._target(repository, pull)
            edit = self._merged(repository, pull, onto)
            text = Text(author, f"{pull.title} (#{number})", self._story(repository, pull))
            commit = self._commits.insert(repository, onto, edit, text)
            self._refs.set(repository, f"{BRANCH}{pull.target}", commit.id)
            sql = "UPDATE pulls SET status = 'merged', merged = ? WHERE repository = ?"
            connection.execute(f"{sql} AND number = ?", (commit.id, repository.key, number))
            return commit

    def _target(self, repository: Repository, pull: Pull) -> Commit:
        id = self._refs.resolve(repository, f"{BRANCH}{pull.target}")
        return self._commits.get(repository, id)

    def _merged(self, repository: Repository, pull: Pull, onto: Commit) -> Edit:
        base = self._commits.get(repository, pull.base).tree
        head = self._commits.get(repository, pull.head).tree
        mine = self._changed(repository, base, head)
        theirs = self._changed(repository, base, onto.tree)
        clashes = sorted(p for p in mine.keys() & theirs.keys() if mine[p] != theirs[p])
        if clashes:
            raise _conflict(repository, pull, tuple(clashes))
        edit = Edit(self._commits.trees(repository), onto.tree)
        todo = {path: file for path, file in mine.items() if path not in theirs}
        try:
            for path in (path for path, file in todo.items() if file is None):
                edit.remove(path)
            for path, file in todo.items():
                if file is not None:
                    edit.put(path, file)
            edit.save()  # here, to tell names that differ in case
        except InvalidPath as error:
            raise _conflict(repository, pull, (error.message,)) from error
        return edit

    def _changed(self, repository: Repository, old: str, new: str) -> Changed:
        changes = self._commits.trees(repository).changes(old, new)
        return {
            path: now if isinstance(now, File) else None
            for path, was, now in changes
            if isinstance(was, File) or isinstance(now, File)
        }

    def _story(self, repository: Repository, pull: Pull) -> str:
        """The titles of what is merged, the oldest first."""
        head = self._commits.get(repository, pull.head)
        base = self._commits.get(repository, pull.base)
        chain = self._commits.chain(repository, head, head.depth - base.depth)
        lines = [f"- {commit.title} ({commit.id})" for commit in reversed(chain)]
        return "\n".join(lines)[: self._limits.message]

    def _update(self, repository: Repository, number: int, column: str, value: str) -> Pull:
        with self._database.transaction() as connection:
            pull = self.get(repository, number)
            if pull.status == "merged" and column == "status":
                raise InvalidRequest(
                    f"pull request {number} of {repository.id} is merged", remedy="open another one"
                )
            sql = f"UPDATE pulls SET {column} = ? WHERE repository = ? AND number = ?"
            connection.execute(sql, (value, repository.key, number))
            return self.get(repository, number)


def _filter(status: str, author: str) -> tuple[str, tuple[str, ...]]:
    where, values = "", []  # type: tuple[str, list[str]]
    if status == "live":
        where += " AND p.status IN ('draft', 'open')"
    elif status:
        where += " AND p.status = ?"
        values.append(status)
    if author:
        where += " AND p.author = ?"
        values.append(author)
    return where, tuple(values)


def _conflict(repository: Repository, pull: Pull, what: tuple[str, ...]) -> Conflict:
    return Conflict(
        f"pull request {pull.number} of {repository.id} conflicts with {pull.target}",
        remedy=f"commit what {pull.target} has to {pull.ref}, or make the change anew",
        details=what,
    )
