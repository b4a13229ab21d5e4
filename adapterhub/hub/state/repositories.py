"""Repositories: their ids, who sees them, and the list of them."""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Callable
from dataclasses import dataclass

from adapterhub.hub.state.database import Database
from adapterhub.hub.state.errors import Conflict, InvalidRequest, RepoNotFound
from adapterhub.hub.state.names import RepoId

GATED = ("", "auto", "manual")
_COLUMNS = "key, kind, namespace, name, private, gated, created, updated, indexed"


@dataclass(frozen=True)
class Repository:
    """`key` stays when it is moved. Times in seconds since 1970; `updated` is that of its refs."""

    key: int
    id: RepoId
    private: bool
    gated: str
    created: int
    updated: int
    indexed: str | None


class Repositories:
    def __init__(self, database: Database, now: Callable[[], float] = time.time) -> None:
        self._database = database
        self._now = now

    def get(self, id: RepoId) -> Repository:
        """Raises RepoNotFound. Spelling decides, case included."""
        found = self._find(self._database.connection(), id)
        if found is None or found.id != id:
            raise missing(id)
        return found

    def insert(self, id: RepoId, *, private: bool = True, gated: str = "") -> Repository:
        """A repository without a commit, which `Hub.create` adds. Raises Conflict."""
        _check_gated(gated)
        with self._database.transaction() as connection:
            self._refuse_taken(connection, id)
            moment = int(self._now())
            connection.execute(
                "INSERT INTO repositories (kind, namespace, name, private, gated, created, updated)"
                " VALUES (?, ?, ?, ?, ?, ?, ?)",
                (id.kind, id.namespace, id.name, private, gated, moment, moment),
            )
            return self.get(id)

    def move(self, old: RepoId, new: RepoId) -> Repository:
        """Gives it another id, with its history. Raises RepoNotFound, Conflict."""
        if old.kind != new.kind:
            raise InvalidRequest(
                f"{old} is a {old.kind} and cannot become a {new.kind}", remedy="keep its type"
            )
        with self._database.transaction() as connection:
            repository = self.get(old)
            if old != new:
                self._refuse_taken(connection, new, but=repository.key)
                connection.execute(
                    "UPDATE repositories SET namespace = ?, name = ? WHERE key = ?",
                    (new.namespace, new.name, repository.key),
                )
            return self.get(new)

    def configure(
        self, id: RepoId, *, private: bool | None = None, gated: str | None = None
    ) -> Repository:
        """Changes who sees it; None leaves as it is. Raises RepoNotFound, InvalidRequest."""
        with self._database.transaction() as connection:
            now = self.get(id)
            values = (
                now.private if private is None else private,
                now.gated if gated is None else _check_gated(gated),
                now.key,
            )
            connection.execute("UPDATE repositories SET private = ?, gated = ? WHERE key = ?", values)
            return self.get(id)

    def delete(self, id: RepoId) -> None:
        """With all revisions, for good; its blobs stay until `gc`. Raises RepoNotFound."""
        with self._database.transaction() as connection:
            connection.execute("DELETE FROM repositories WHERE key = ?", (self.get(id).key,))

    def list(
        self,
        *,
        kind: str = "model",
        namespace: str | None = None,
        readable: tuple[str, ...] | None = (),
        limit: int = 100,
        after: tuple[int, int] | None = None,
    ) -> tuple[Repository, ...]:
        """A page, the last changed first. `after`: `(updated, key)` of the page before's last row.

        `readable`: namespaces whose private repositories are listed too; None for all.
        """
        where, values = ["kind = ?"], [kind]  # type: tuple[list[str], list[object]]
        if namespace is not None:
            where.append("namespace = ?")
            values.append(namespace)
        if readable is not None:
            marks = ", ".join("?" * len(readable))
            where.append(f"(NOT private OR namespace COLLATE BINARY IN ({marks}))")
            values += readable
        if after is not None:
            where.append("(updated, key) < (?, ?)")
            values += after
        sql = f"SELECT {_COLUMNS} FROM repositories WHERE {' AND '.join(where)}"
        sql += " ORDER BY updated DESC, key DESC LIMIT ?"
        rows = self._database.connection().execute(sql, (*values, limit))
        return tuple(map(_repository, rows))

    # --- for the registry's index, which follows the main branch

    def unindexed(self) -> tuple[tuple[Repository, str], ...]:
        """Repositories whose main branch is not what `mark_indexed` last said, and that commit."""
        columns = ", ".join(f"r.{column}" for column in _COLUMNS.split(", "))
        sql = (
            f"SELECT {columns}, f.target FROM repositories r JOIN refs f ON f.repository = r.key"
            " AND f.name = 'refs/heads/main' WHERE r.indexed IS NOT f.target"
        )
        rows = self._database.connection().execute(sql).fetchall()
        return tuple((_repository(row), row[-1]) for row in rows)

    def mark_indexed(self, repository: Repository, commit: str) -> None:
        with self._database.transaction() as connection:
            sql = "UPDATE repositories SET indexed = ? WHERE key = ?"
            connection.execute(sql, (commit, repository.key))

    def _find(self, connection: sqlite3.Connection, id: RepoId) -> Repository | None:
        sql = f"SELECT {_COLUMNS} FROM repositories WHERE kind = ? AND namespace = ? AND name = ?"
        row = connection.execute(sql, (id.kind, id.namespace, id.name)).fetchone()
        return _repository(row) if row else None

    def _refuse_taken(self, connection: sqlite3.Connection, id: RepoId, but: int = 0) -> None:
        """Ids that differ in case only would be one folder on some disks."""
        other = self._find(connection, id)
        if other is not None and other.key != but:
            raise Conflict(f"{id.kind} {other.id} exists already", remedy="choose another name")


def missing(id: RepoId) -> RepoNotFound:
    return RepoNotFound(f"no {id.kind} {id}", remedy="check its spelling and your token")


def _check_gated(gated: str) -> str:
    if gated not in GATED:
        raise InvalidRequest(f"gated is {gated!r}", remedy=f"use one of {GATED}")
    return gated


def _repository(row: tuple[object, ...]) -> Repository:
    key, kind, namespace, name, private, gated, created, updated, indexed = row[:9]
    id = RepoId(str(kind), str(namespace), str(name))
    return Repository(
        int(str(key)),
        id,
        bool(private),
        str(gated),
        int(str(created)),
        int(str(updated)),
        None if indexed is None else str(indexed),
    )
