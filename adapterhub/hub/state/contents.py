"""Which blobs of the store were delivered to which repository.

The store keeps equal contents once, whoever brought them. To know a digest is not to own the
content: a commit takes only what was delivered to its own repository, by an upload or by someone
who could read it elsewhere. The same rows tell the store's `gc` what to keep.
"""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path

from adapterhub.digest import is_digest
from adapterhub.errors import IntegrityError
from adapterhub.hub.state import objects
from adapterhub.hub.state.database import Database
from adapterhub.hub.state.errors import InvalidRequest
from adapterhub.hub.state.limits import Limits
from adapterhub.hub.state.repositories import Repository, missing
from adapterhub.store import Store

WEEK = 604800  # seconds; the view gc_roots says the same


@dataclass(frozen=True)
class Content:
    """`size` in bytes; `oid` is its id as a git blob, once that was needed."""

    digest: str
    size: int
    oid: str | None
    committed: bool


class Contents:
    def __init__(
        self,
        database: Database,
        store: Store,
        limits: Limits,
        now: Callable[[], float] = time.time,
    ) -> None:
        self._database = database
        self._store = store
        self._limits = limits
        self._now = now

    def put_file(self, repository: Repository, path: Path) -> Content:
        """Stores a copy of a file for this repository."""
        with self._store.writing():
            return self.deliver(repository, self._store.put_blob_file(path)[0])

    def put_bytes(self, repository: Repository, data: bytes) -> Content:
        with self._store.writing():
            return self.deliver(repository, self._store.put_blob_bytes(data)[0])

    def deliver(self, repository: Repository, digest: str) -> Content:
        """Says that a stored blob was brought to this repository; `gc` spares it for a week.

        Only for who has seen the caller send, or be allowed to read, all of its bytes. Raises
        IntegrityError where the store lacks it, TooLarge, RepoNotFound.
        """
        return self.deliver_all(repository, [digest])[0]

    def deliver_all(self, repository: Repository, digests: Iterable[str]) -> tuple[Content, ...]:
        """As `deliver`, in one transaction."""
        with self._store.writing():
            sizes = {digest: self._store.blob_size(digest) for digest in digests}
            for digest, size in sizes.items():
                self._limits.check("file_size", size, f"bytes of {digest}")
            with self._database.transaction() as connection:
                self._forget(connection, repository)
                fresh = [d for d in sizes if not self._refresh(connection, repository, d)]
                rows = [(repository.key, d, sizes[d], int(self._now())) for d in fresh]
                self._count(connection, repository, sum(sizes[d] for d in fresh))
                sql = "INSERT INTO contents (repository, digest, size, delivered) VALUES (?,?,?,?)"
                connection.executemany(sql, rows)
        return tuple(Content(digest, size, None, False) for digest, size in sizes.items())

    def check_room(self, repository: Repository, size: int) -> None:
        """Before `size` bytes are taken in. Raises TooLarge, RepoNotFound."""
        self._limits.check("file_size", size, "bytes of the file")
        sql = "SELECT stored FROM repositories WHERE key = ?"
        row = self._database.row(sql, (repository.key,))
        if row is None:
            raise missing(repository.id)
        self._check_total(repository, row[0] + size)

    def find(self, repository: Repository, digest: str) -> Content | None:
        """None where it was never delivered, or has been collected since.

        Who tells a client that it need not send this again calls `deliver` for another week.
        """
        if not is_digest(digest):
            return None
        sql = (
            "SELECT digest, size, oid, committed FROM contents WHERE repository = ? AND digest = ?"
        )
        row = self._database.row(sql, (repository.key, digest))
        if row is None or not self._store.has_blob(digest):
            return None
        return Content(row[0], row[1], row[2], bool(row[3]))

    def need(self, repository: Repository, digest: str) -> Content:
        """As `find`. Raises InvalidRequest where there is none."""
        found = self.find(repository, digest)
        if found is None:
            raise InvalidRequest(
                f"{digest} was not uploaded to {repository.id}", remedy="upload it, then commit"
            )
        return found

    def share(self, source: Repository, target: Repository, digest: str) -> Content:
        """Delivers what one repository has to another; the caller must be able to read it.

        What `source` has in no commit is its uploader's own business, and refused.
        """
        found = self.find(source, digest)
        if found is None or not found.committed:
            raise InvalidRequest(f"no file of {source.id} is {digest}", remedy="upload it")
        return self.deliver(target, digest)

    def with_oid(self, content: Content) -> Content:
        """Knowing its id as a git blob; reads it for that, once. Raises IntegrityError."""
        if content.oid is not None:
            return content
        with self._store.open_blob(content.digest) as file:
            oid, sha256 = objects.blob_oid(file, content.size)
        if content.digest != f"sha256:{sha256}":
            raise IntegrityError(
                f"blob {content.digest} is damaged: its bytes hash to sha256:{sha256}",
                remedy="upload the file again",
            )
        return replace(content, oid=oid)

    def settle(
        self, connection: sqlite3.Connection, repository: Repository, contents: Iterable[Content]
    ) -> None:
        """Marks what a commit of this transaction has."""
        sql = "UPDATE contents SET committed = 1, oid = coalesce(?, oid)"
        sql += " WHERE repository = ? AND digest = ?"
        rows = [(content.oid, repository.key, content.digest) for content in contents]
        connection.executemany(sql, rows)

    def used(self, repository: Repository) -> int:
        """Bytes of all contents that any commit of it has, each counted once."""
        sql = "SELECT coalesce(sum(size), 0) FROM contents WHERE repository = ? AND committed"
        return int(self._database.rows(sql, (repository.key,))[0][0])

    def _refresh(self, connection: sqlite3.Connection, repository: Repository, digest: str) -> bool:
        sql = "UPDATE contents SET delivered = ? WHERE repository = ? AND digest = ?"
        return bool(connection.execute(sql, (int(self._now()), repository.key, digest)).rowcount)

    def _forget(self, connection: sqlite3.Connection, repository: Repository) -> None:
        """What nobody committed within a week: `gc` does not keep it, so it is not there."""
        sql = "DELETE FROM contents WHERE repository = ? AND NOT committed AND delivered <= ?"
        rows = connection.execute(
            sql + " RETURNING size", (repository.key, int(self._now()) - WEEK)
        ).fetchall()
        if rows:
            self._count(connection, repository, -sum(size for (size,) in rows))

    def _count(self, connection: sqlite3.Connection, repository: Repository, more: int) -> None:
        sql = "UPDATE repositories SET stored = stored + ? WHERE key = ? RETURNING stored"
        row = connection.execute(sql, (more, repository.key)).fetchone()
        if row is None:
            raise missing(repository.id)
        if more > 0:
            self._check_total(repository, row[0])

    def _check_total(self, repository: Repository, total: int) -> None:
        remedy = "delete what is not needed and squash the history, or ask who runs the hub"
        self._limits.check("repository_size", total, f"bytes in {repository.id}", remedy)
