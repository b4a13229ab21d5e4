"""Which blobs of the store were delivered to which repository.

The store keeps equal contents once, whoever brought them. To know a digest is not to own the
content: a commit takes only what was delivered to its own repository, by an upload or by someone
who could read it elsewhere. The same rows tell the store's `gc` what to keep.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from adapterhub.errors import IntegrityError
from adapterhub.hub.state import objects
from adapterhub.hub.state.database import Database
from adapterhub.hub.state.errors import InvalidRequest
from adapterhub.hub.state.repositories import Repository
from adapterhub.store import Store


@dataclass(frozen=True)
class Content:
    """`size` in bytes; `oid` is its id as a git blob, once that was needed."""

    digest: str
    size: int
    oid: str | None
    committed: bool


class Contents:
    def __init__(self, database: Database, store: Store, now: Callable[[], float] = time.time):
        self._database = database
        self._store = store
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
        IntegrityError where the store lacks it.
        """
        with self._store.writing():
            size = self._store.blob_size(digest)
            with self._database.transaction() as connection:
                connection.execute(
                    "INSERT INTO contents (repository, digest, size, delivered) VALUES (?, ?, ?, ?)"
                    " ON CONFLICT DO UPDATE SET delivered = excluded.delivered",
                    (repository.key, digest, size, int(self._now())),
                )
        return Content(digest, size, None, False)

    def find(self, repository: Repository, digest: str) -> Content | None:
        """None where it was never delivered, or has been collected since."""
        sql = (
            "SELECT digest, size, oid, committed FROM contents WHERE repository = ? AND digest = ?"
        )
        row = self._database.connection().execute(sql, (repository.key, digest)).fetchone()
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
        """Delivers what one repository has to another; the caller must be able to read it."""
        return self.deliver(target, self.need(source, digest).digest)

    def oid(self, repository: Repository, content: Content) -> str:
        """Id as a git blob; reads the content once. Raises IntegrityError where it is damaged."""
        if content.oid is not None:
            return content.oid
        with self._store.open_blob(content.digest) as file:
            oid, sha256 = objects.blob_oid(file, content.size)
        if content.digest != f"sha256:{sha256}":
            raise IntegrityError(
                f"blob {content.digest} is damaged: its bytes hash to sha256:{sha256}",
                remedy="upload the file again",
            )
        with self._database.transaction() as connection:
            sql = "UPDATE contents SET oid = ? WHERE repository = ? AND digest = ?"
            connection.execute(sql, (oid, repository.key, content.digest))
        return oid

    def used(self, repository: Repository) -> int:
        """Bytes of all contents that any commit of it has, each counted once."""
        sql = "SELECT coalesce(sum(size), 0) FROM contents WHERE repository = ? AND committed"
        return int(self._database.connection().execute(sql, (repository.key,)).fetchone()[0])
