"""Repositories: their ids, who sees them, and the list of them."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from adapterhub.hub.state.database import Database
from adapterhub.hub.state.errors import Conflict, InvalidRequest, RepoNotFound
from adapterhub.hub.state.names import RepoId

GATED = ("", "auto", "manual")
_COLUMNS = "key, kind, namespace, name, private, gated, created, updated, stored, indexed, info"


@dataclass(frozen=True)
class Repository:
    """`key` stays when it is moved. Times in seconds since 1970; `updated` is that of its refs.

    `stored`: bytes of all that was delivered. `info` is what `mark_indexed` said last.
    """

    key: int
    id: RepoId
    private: bool
    gated: str
    created: int
    updated: int
    stored: int
    indexed: str | None
    info: Mapping[str, Any]


class Repositories:
    def __init__(self, database: Database, now: Callable[[], float] = time.time) -> None:
        self._database = database
        self._now = now

    def get(self, id: RepoId) -> Repository:
        """Raises RepoNotFound. Spelling decides, case included."""
        found = self._find(id)
        if found is None or found.id != id:
            raise missing(id)
        return found

    def is_private(self, id: RepoId) -> bool | None:
        """None where there is none of this spelling."""
        sql = "SELECT namespace, name, private FROM repositories WHERE kind = ? AND namespace = ?"
        row = self._database.row(f"{sql} AND name = ?", (id.kind, id.namespace, id.name))
        return bool(row[2]) if row and row[:2] == (id.namespace, id.name) else None

    def again(self, repository: Repository) -> Repository:
        """As it is now, wherever it was moved to. Raises RepoNotFound."""
        sql = f"SELECT {_COLUMNS} FROM repositories WHERE key = ?"
        row = self._database.row(sql, (repository.key,))
        if row is None:
            raise missing(repository.id)
        return _repository(row)

    def insert(self, id: RepoId, *, private: bool = True, gated: str = "") -> Repository:
        """A repository without a commit, which `Hub.create` adds. Raises Conflict."""
        _check_gated(gated)
        with self._database.transaction() as connection:
            self._refuse_taken(id)
            moment = int(self._now())
            connection.execute(
                "INSERT INTO repositories (kind, namespace, name, private, gated, created, updated)"
                " VALUES (?, ?, ?, ?, ?, ?, ?)",
                (id.kind, id.namespace, id.name, private, gated, moment, moment),
            )
            return self.get(id)

    def move(self, repository: Repository, new: RepoId) -> Repository:
        """Gives it another id, with its history. Raises RepoNotFound, Conflict."""
        kind = repository.id.kind
        if kind != new.kind:
            raise InvalidRequest(
                f"{repository.id} is a {kind} and cannot become a {new.kind}",
                remedy="keep its type",
            )
        with self._database.transaction() as connection:
            self.again(repository)
            self._refuse_taken(new, but=repository.key)
            sql = "UPDATE repositories SET namespace = ?, name = ? WHERE key = ?"
            connection.execute(sql, (new.namespace, new.name, repository.key))
            return self.again(repository)

    def configure(
        self, repository: Repository, *, private: bool | None = None, gated: str | None = None
    ) -> Repository:
        """Changes who sees it; None leaves as it is. Raises RepoNotFound, InvalidRequest."""
        with self._database.transaction() as connection:
            now = self.again(repository)
            values = (
                now.private if private is None else private,
                now.gated if gated is None else _check_gated(gated),
                now.key,
            )
            connection.execute(
                "UPDATE repositories SET private = ?, gated = ? WHERE key = ?", values
            )
            return self.again(repository)

    def delete(self, repository: Repository) -> Repository:
        """With all revisions, for good; its blobs stay until `gc`. As it was at the end.

        Raises RepoNotFound.
        """
        with self._database.transaction() as connection:
            last = self.again(repository)
            connection.execute("DELETE FROM repositories WHERE key = ?", (repository.key,))
            return last

    def list(
        self,
        *,
        kind: str = "model",
        namespace: str | None = None,
        search: str = "",
        labels: Iterable[str] = (),
        readable: tuple[str, ...] | None = (),
        gated: bool | None = None,
        order: str = "updated",
        ascending: bool = False,
        limit: int = 100,
        after: tuple[int, int] | None = None,
    ) -> tuple[Repository, ...]:
        """A page, the last changed (or by `order="created"` made) first.

        Every word of `search` is in the id; `labels` are all among those of `mark_indexed`.
        `readable`: namespaces whose private repositories are listed too; None for all. `after`:
        `(updated or created, key)` of the page before's last row.
        """
        _check_order(order)
        where, values = ["kind = ?"], [kind]  # type: tuple[list[str], list[object]]
        if namespace is not None:
            where.append("namespace = ? COLLATE BINARY")
            values.append(namespace)
        for word in search.split():
            where.append("instr(lower(namespace || '/' || name), lower(?))")
            values.append(word)
        if gated is not None:
            where.append("gated <> ''" if gated else "gated = ''")
        for label in labels:
            where.append("EXISTS (SELECT 1 FROM labels WHERE repository = key AND label = ?)")
            values.append(label)
        if readable is not None:
            marks = ", ".join("?" * len(readable))
            where.append(f"(NOT private OR namespace COLLATE BINARY IN ({marks}))")
            values += readable
        if after is not None:
            where.append(f"({order}, key) {'>' if ascending else '<'} (?, ?)")
            values += after
        sql = f"SELECT {_COLUMNS} FROM repositories WHERE {' AND '.join(where)}"
        way = "ASC" if ascending else "DESC"
        sql += f" ORDER BY {order} {way}, key {way} LIMIT ?"
        return tuple(map(_repository, self._database.rows(sql, (*values, limit))))

    def count(self) -> int:
        """Of all kinds."""
        return int(self._database.rows("SELECT count(*) FROM repositories")[0][0])

    # --- for the registry's index, which follows the main branch

    def unindexed(self) -> tuple[tuple[Repository, str], ...]:
        """Repositories whose main branch is not what `mark_indexed` last said, and that commit."""
        columns = ", ".join(f"r.{column}" for column in _COLUMNS.split(", "))
        sql = (
            f"SELECT {columns}, f.target FROM repositories r JOIN refs f ON f.repository = r.key"
            " AND f.name = 'refs/heads/main' WHERE r.indexed IS NOT f.target"
        )
        return tuple((_repository(row), row[-1]) for row in self._database.rows(sql))

    def mark_indexed(
        self,
        repository: Repository,
        commit: str,
        *,
        labels: Iterable[str] = (),
        info: Mapping[str, Any] | None = None,
    ) -> None:
        """What was found in a commit of main; `info` is JSON, `labels` are what `list` filters by.

        Nothing happens where the repository has been deleted meanwhile.
        """
        text = json.dumps(dict(info or {}))
        with self._database.transaction() as connection:
            sql = "UPDATE repositories SET indexed = ?, info = ? WHERE key = ?"
            if connection.execute(sql, (commit, text, repository.key)).rowcount:
                connection.execute("DELETE FROM labels WHERE repository = ?", (repository.key,))
                rows = [(repository.key, label) for label in sorted(set(labels))]
                connection.executemany("INSERT INTO labels VALUES (?, ?)", rows)

    def labels(self, repository: Repository) -> tuple[str, ...]:
        sql = "SELECT label FROM labels WHERE repository = ? ORDER BY label"
        return tuple(label for (label,) in self._database.rows(sql, (repository.key,)))

    def _find(self, id: RepoId) -> Repository | None:
        sql = f"SELECT {_COLUMNS} FROM repositories WHERE kind = ? AND namespace = ? AND name = ?"
        row = self._database.row(sql, (id.kind, id.namespace, id.name))
        return _repository(row) if row else None

    def _refuse_taken(self, id: RepoId, but: int = 0) -> None:
        """Ids that differ in case only would be one folder on some disks."""
        other = self._find(id)
        if other is not None and other.key != but:
            raise Conflict(f"{id.kind} {other.id} exists already", remedy="choose another name")


def missing(id: RepoId) -> RepoNotFound:
    return RepoNotFound(f"no {id.kind} {id}", remedy="check its spelling and your token")


def _check_order(order: str) -> None:
    if order not in ("updated", "created"):
        raise InvalidRequest(f"no order: {order!r}", remedy="use updated or created")


def _check_gated(gated: str) -> str:
    if gated not in GATED:
        raise InvalidRequest(f"gated is {gated!r}", remedy=f"use one of {GATED}")
    return gated


def _repository(row: tuple[Any, ...]) -> Repository:
    key, kind, namespace, name, private, gated, created, updated, stored, indexed, info = row[:11]
    id = RepoId(kind, namespace, name)
    return Repository(
        key, id, bool(private), gated, created, updated, stored, indexed, json.loads(info)
    )
