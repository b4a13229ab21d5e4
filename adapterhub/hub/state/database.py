"""hub.db: what the server knows and nothing else does: repositories, commits, refs, tokens.

Unlike index.db it is no cache. So every transaction is flushed before it is reported
(synchronous = FULL), and a database that cannot be read is never made anew. A connection per
thread; readers (WAL) never wait; a writer begins with BEGIN IMMEDIATE and waits for the others.
"""

from __future__ import annotations

import os
import sqlite3
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from adapterhub.errors import AdapterHubError, IntegrityError, OutputError, StoreError
from adapterhub.hub.state.errors import InvalidRequest
from adapterhub.hub.state.tables import MIGRATIONS

APPLICATION_ID = 0x41644862
BUSY_SECONDS = 60.0
_FULL, _READONLY, _CORRUPT, _NOTADB = 13, 8, 11, 26


class Database:
    """hub.db at `path`, made where it does not exist. Safe between threads and processes."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._local = threading.local()
        self._kept: list[tuple[threading.Thread, sqlite3.Connection]] = []
        self._mutex = threading.Lock()
        self._writer = threading.RLock()  # lines this process's writers up, which SQLite does not
        self._prepare()

    def close(self) -> None:
        """Closes the connections of every thread."""
        with self._mutex:
            for _, connection in self._kept:
                connection.close()
            self._kept = []
            self._local = threading.local()

    def connection(self) -> sqlite3.Connection:
        """This thread's connection. Raises StoreError, IntegrityError, OutputError."""
        known = getattr(self._local, "known", None)
        if known and known[0] == os.getpid():
            held: sqlite3.Connection = known[1]
            return held
        try:
            connection = self._connect()
        except sqlite3.Error as error:
            raise failure(error, self.path) from error
        with self._mutex:
            for each in [kept for kept in self._kept if not kept[0].is_alive()]:
                self._kept.remove(each)
                each[1].close()
            self._kept.append((threading.current_thread(), connection))
        self._local.known = (os.getpid(), connection)
        return connection

    @contextmanager
    def transaction(self) -> Iterator[sqlite3.Connection]:
        """All of it or nothing, durably. Within another one of this thread it is a part of that."""
        connection = self.connection()
        if _is_busy(connection):
            self._refuse_upgrade()
            yield connection
            return
        with self._writer, self._named():
            connection.execute("BEGIN IMMEDIATE")
            self._local.writes = True
            try:
                yield connection
                connection.execute("COMMIT")
            finally:
                self._local.writes = False
                if _is_busy(connection):
                    connection.execute("ROLLBACK")

    def attempt(self, sql: str, values: Sequence[object]) -> bool:
        """One change, unless somebody is changing something just now, or it cannot be made."""
        connection = self.connection()
        if _is_busy(connection) or not self._writer.acquire(blocking=False):
            return False
        try:
            connection.execute("PRAGMA busy_timeout = 0")
            connection.execute(sql, values)
            return True
        except sqlite3.Error:
            return False
        finally:
            connection.execute(f"PRAGMA busy_timeout = {int(BUSY_SECONDS * 1000)}")
            self._writer.release()

    @contextmanager
    def snapshot(self) -> Iterator[sqlite3.Connection]:
        """For reading: everything asked within it is of one moment."""
        connection = self.connection()
        if _is_busy(connection):
            yield connection
            return
        with self._named():
            connection.execute("BEGIN")
            try:
                yield connection
            finally:
                if _is_busy(connection):
                    connection.execute("ROLLBACK")

    def rows(self, sql: str, values: Sequence[object] = ()) -> list[tuple[Any, ...]]:
        """The answer to a question, within this thread's transaction or snapshot if it has one."""
        with self._named():
            return self.connection().execute(sql, values).fetchall()

    def row(self, sql: str, values: Sequence[object] = ()) -> tuple[Any, ...] | None:
        with self._named():
            found: tuple[Any, ...] | None = self.connection().execute(sql, values).fetchone()
            return found

    def _refuse_upgrade(self) -> None:
        if not getattr(self._local, "writes", False):
            raise StoreError("hub.db was to be changed within a snapshot", remedy="end it first")

    @contextmanager
    def _named(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.Error as error:
            raise failure(error, self.path) from error
        except (UnicodeEncodeError, OverflowError) as error:
            raise InvalidRequest(
                f"a text or number that nothing here has: {error}", remedy="correct the request"
            ) from error

    def _connect(self) -> sqlite3.Connection:
        connection = sqlite3.connect(
            self.path, timeout=BUSY_SECONDS, isolation_level=None, check_same_thread=False
        )
        try:
            connection.execute("PRAGMA journal_mode = WAL")
            connection.execute("PRAGMA synchronous = FULL")
            connection.execute("PRAGMA foreign_keys = ON")
        except sqlite3.Error:
            connection.close()
            raise
        return connection

    def _prepare(self) -> None:
        try:
            # It holds hashes of tokens and private names; WAL and shm take its mode over.
            os.close(os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
        except OSError as error:
            raise OutputError(
                f"cannot open {self.path}: {error.strerror}", remedy="check its permissions"
            ) from error
        if self._version() < len(MIGRATIONS):
            with self.transaction():
                self._migrate()

    def _version(self) -> int:
        """How many migrations ran. Raises StoreError for a foreign or later database."""
        with self.snapshot() as connection:
            (application,) = connection.execute("PRAGMA application_id").fetchone()
            (version,) = connection.execute("PRAGMA user_version").fetchone()
            (tables,) = connection.execute("SELECT count(*) FROM sqlite_schema").fetchone()
        if application != APPLICATION_ID and (application or version or tables):
            raise StoreError(
                f"{self.path} is a database of another program",
                remedy="move it away, or set $ADAPTERHUB_HOME to another directory",
            )
        if version > len(MIGRATIONS):
            raise StoreError(
                f"{self.path} has version {version}; this adapterhub knows {len(MIGRATIONS)}",
                remedy="upgrade adapterhub",
            )
        return int(version)

    def _migrate(self) -> None:
        connection = self.connection()
        (version,) = connection.execute("PRAGMA user_version").fetchone()
        for step in MIGRATIONS[version:]:  # none, where another process was quicker
            step(connection)
        connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")
        connection.execute(f"PRAGMA user_version = {len(MIGRATIONS)}")


def _is_busy(connection: sqlite3.Connection) -> bool:
    return connection.in_transaction


def failure(error: sqlite3.Error, path: Path) -> AdapterHubError:
    """The named error for what SQLite could not do."""
    code = getattr(error, "sqlite_errorcode", 0) & 0xFF
    if code == _FULL:
        return OutputError(f"disk full while writing {path}", remedy="free some space")
    if code == _READONLY:
        return OutputError(f"{path} is not writable ({error})", remedy="correct its permissions")
    if code in (_CORRUPT, _NOTADB):
        return IntegrityError(
            f"{path} is damaged: {error}", remedy="restore it from a backup; nothing else has it"
        )
    return StoreError(
        f"SQLite cannot use {path}: {error}", remedy="wait for its other users, or end them"
    )
