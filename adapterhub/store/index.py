"""index.db: what ref logs and manifests say, in the shape that questions need.

It is a cache. Whatever is wrong with it (missing, foreign, damaged, of another version), it is
set aside and made again from the logs and manifests. Writers use BEGIN IMMEDIATE and wait for each
other; readers (WAL) never wait.

sqlite-utils makes the tables and is imported only then: that import takes longer than most
commands. Rows are read and written through sqlite3 itself.
"""

from __future__ import annotations

import contextlib
import json
import os
import sqlite3
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any

from adapterhub.errors import AdapterHubError, OutputError, StoreError
from adapterhub.store import files, refs
from adapterhub.store.home import Home
from adapterhub.store.tables import IN_NAMES, MIGRATIONS, facts, text_of, texts_of

APPLICATION_ID = 0x41644875
BUSY_SECONDS = 60.0
_DAMAGE = {11, 26}  # SQLITE_CORRUPT, SQLITE_NOTADB
_FULL, _READONLY = 13, 8


class Index:
    """Connections to index.db, one per thread, and what is written through them."""

    def __init__(
        self,
        home: Home,
        manifest: Callable[[str], Mapping[str, Any]],
        commit_lock: files.ThreadLock,
        note: Callable[[str], None],
    ) -> None:
        self._home = home
        self._manifest = manifest
        self._lock = commit_lock
        self._note = note
        self._local = threading.local()
        self._kept: list[tuple[threading.Thread, sqlite3.Connection, sqlite3.Connection]] = []

    def close(self) -> None:
        """Closes the connections of every thread."""
        while self._kept:
            _close(self._kept.pop())
        self._local = threading.local()

    def connection(self) -> sqlite3.Connection:
        """This thread's connection to a sound index.db, which is made again where it is not.

        Raises StoreError where SQLite cannot work in this home.
        """
        known = getattr(self._local, "known", None)
        if known and known[:2] == (os.getpid(), self._inode()):
            held: sqlite3.Connection = known[2]
            return held
        connection = self._open()
        if connection is None:
            with self._lock():
                connection = self._open() or self._make_again()
        self._local.known = (os.getpid(), self._inode(), connection)
        self._keep(connection)
        return connection

    def _keep(self, connection: sqlite3.Connection) -> None:
        """Remembers it with its guard; closes those of threads that have ended."""
        for each in [kept for kept in self._kept if not kept[0].is_alive()]:
            self._kept.remove(each)
            _close(each)
        self._kept.append((threading.current_thread(), connection, self._guard()))

    def _guard(self) -> sqlite3.Connection:
        """A reader that is closed last. Being unable to write, it does not check the WAL in.

        Else each process that adds one adapter would pay for that with four fsyncs; and one with
        an index.db that was set aside would delete, by its name, the WAL of the new one.
        """
        uri = f"{self._home.index.as_uri()}?mode=ro"
        try:
            guard = sqlite3.connect(uri, uri=True, isolation_level=None, check_same_thread=False)
            guard.execute("SELECT key FROM meta LIMIT 1").fetchone()
        except sqlite3.Error as error:
            raise failure(error, self._home) from error
        return guard

    def replace(self) -> None:
        """Makes index.db again, after a question found it damaged."""
        with self._lock():
            known = getattr(self._local, "known", None)
            if known and known[1] == self._inode():  # else another process has done it
                self._keep(self._make_again())
            self._local.known = None

    def _inode(self) -> int:
        try:
            return self._home.index.stat().st_ino
        except FileNotFoundError:
            return -1

    def _open(self) -> sqlite3.Connection | None:
        """None where index.db is not what this version wrote."""
        if not self._home.index.exists():
            return None
        connection: sqlite3.Connection | None = None
        try:
            connection = self._connect()
            (application,) = connection.execute("PRAGMA application_id").fetchone()
            (version,) = connection.execute("PRAGMA user_version").fetchone()
            if application == APPLICATION_ID and version == len(MIGRATIONS):
                connection.execute("SELECT id FROM names LIMIT 1").fetchone()
                return connection
        except sqlite3.Error as error:
            if not is_damage(error):
                raise failure(error, self._home) from error
        if connection is not None:
            connection.close()
        return None

    def _connect(self) -> sqlite3.Connection:
        connection = sqlite3.connect(
            self._home.index,
            timeout=BUSY_SECONDS,
            isolation_level=None,
            check_same_thread=False,
        )
        try:
            connection.execute("PRAGMA journal_mode = WAL")
            connection.execute("PRAGMA synchronous = NORMAL")
            connection.execute("PRAGMA cache_size = -65536")
        except sqlite3.Error:
            connection.close()
            raise
        return connection

    def _make_again(self) -> sqlite3.Connection:
        with files.named_errors(self._home.root):
            self._set_aside()
        try:
            connection = self._connect()
            with transaction(connection):
                self._fill(connection)
        except sqlite3.Error as error:
            raise failure(error, self._home) from error
        return connection

    def _set_aside(self) -> None:
        """Renames an index.db that cannot be used, with its companions."""
        index = self._home.index
        moment = datetime.now(UTC).strftime("%Y%m%dT%H%M%S%f")
        if index.exists():
            aside = index.with_name(f"{index.name}.aside-{moment}")
            files.rename(index, aside)
            self._note(
                f"index.db could not be used; it is kept as {aside.name}, and a new one is made"
            )
        for suffix in ("-wal", "-shm"):
            files.unlink(index.with_name(index.name + suffix))

    # --- writing

    def update(self, log: refs.Log) -> None:
        """Makes the rows of one name say what its log says. Raises sqlite3.Error."""
        files.announce("index", self._home.index)
        connection = self.connection()
        with transaction(connection):
            self._put(connection, log)

    def forget(self, name: str) -> None:
        connection = self.connection()
        with transaction(connection):
            self._put(connection, refs.Log(name))

    def last(self, name: str) -> str | None:
        """Id of the last event that the rows of a name know of. Raises sqlite3.Error."""
        sql = "SELECT last FROM logs WHERE name = ?"
        row = self.connection().execute(sql, (name,)).fetchone()
        return row[0] if row else None

    def sync(self) -> None:
        """Makes all that was committed durable. Raises sqlite3.Error."""
        connection = self.connection()
        connection.execute("PRAGMA synchronous = FULL")
        try:
            with transaction(connection):
                connection.execute("INSERT OR REPLACE INTO meta VALUES ('synced', 1)")
        finally:
            connection.execute("PRAGMA synchronous = NORMAL")

    def reindex(self) -> int:
        """Derives every row anew, in one transaction; the number of live names."""
        connection = self.connection()
        try:
            with transaction(connection):
                return self._fill(connection)
        except sqlite3.Error as error:
            raise failure(error, self._home) from error

    def _fill(self, connection: sqlite3.Connection) -> int:
        for table in ("names", "versions", "tags", "topics", "logs", "meta", "fts"):
            connection.execute(f"DROP TABLE IF EXISTS {table}")
        for migrate in MIGRATIONS:
            migrate(connection)
        connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")
        connection.execute(f"PRAGMA user_version = {len(MIGRATIONS)}")
        count = 0
        for name in sorted(refs.iterate(self._home.refs)):
            try:
                log = refs.read(self._home.refs, name)
            except AdapterHubError as error:
                self._note(f"{name} is left out of the index: {error.message}")
                continue
            count += self._put(connection, log, fresh=True)
        connection.execute("ANALYZE")
        return count

    def _put(self, connection: sqlite3.Connection, log: refs.Log, fresh: bool = False) -> bool:
        state = log.state
        key = None if fresh else _id_of(connection, log.name)
        last = log.events[-1].id if log.events else None
        if last is None:
            connection.execute("DELETE FROM logs WHERE name = ?", (log.name,))
        else:
            connection.execute("INSERT OR REPLACE INTO logs VALUES (?, ?)", (log.name, last))
        if key is not None:
            for table, column in (("tags", "id"), ("topics", "id"), ("fts", "rowid")):
                connection.execute(f"DELETE FROM {table} WHERE {column} = ?", (key,))
        if state.live:
            self._put_live(connection, state, key)
        elif key is not None:
            connection.execute("DELETE FROM names WHERE id = ?", (key,))
            connection.execute("DELETE FROM versions WHERE id = ?", (key,))
        return state.live

    def _put_live(self, connection: sqlite3.Connection, state: refs.State, key: int | None) -> None:
        found = self._facts(state.latest)
        row, topics = _name_row(state, found)
        if key is None:
            key = _insert(connection, "names", row)
        else:
            sets = ", ".join(f"{column} = ?" for column in row)
            connection.execute(f"UPDATE names SET {sets} WHERE id = ?", (*row.values(), key))
        self._put_versions(connection, state, key, {state.latest: found})
        tags = [(key, tag, digest) for tag, digest in state.tags.items()]
        connection.executemany("INSERT INTO tags VALUES (?, ?, ?)", tags)
        connection.executemany("INSERT INTO topics VALUES (?, ?)", [(key, t) for t in topics])
        labels = " ".join(json.loads(found["labels"]))
        text = [row["name"], row["description"], " ".join(topics), row["base_name"], labels]
        connection.execute(
            "INSERT INTO fts(rowid, name, description, topics, base, labels, task, method)"
            " VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
            (key, *text, row["task"], row["method"]),
        )

    def _put_versions(
        self,
        connection: sqlite3.Connection,
        state: refs.State,
        key: int,
        found: Mapping[str, Mapping[str, Any]],
    ) -> None:
        known = connection.execute("SELECT digest FROM versions WHERE id = ?", (key,)).fetchall()
        gone = [(key, digest) for (digest,) in known if digest not in state.versions]
        connection.executemany("DELETE FROM versions WHERE id = ? AND digest = ?", gone)
        for digest in state.versions.keys() - {digest for (digest,) in known}:
            row = {"id": key, "digest": digest, "added": state.versions[digest]}
            _insert(connection, "versions", {**row, **(found.get(digest) or self._facts(digest))})

    def _facts(self, digest: str) -> dict[str, Any]:
        try:
            return facts(self._manifest(digest))
        except AdapterHubError as error:
            self._note(f"the index knows nothing of {digest}: {error.message}")
            return facts({})


def _name_row(
    state: refs.State, found: Mapping[str, Any]
) -> tuple[dict[str, Any], tuple[str, ...]]:
    card = state.card
    topics = tuple(dict.fromkeys(json.loads(texts_of(card.get("topics")))))
    row = {
        "name": state.name,
        "reversed": state.name[::-1],
        "digest": state.latest,
        "created": state.created,
        "updated": state.updated,
        "description": text_of(card.get("description")),
        "licence": text_of(card.get("licence")),
        "language": texts_of(card.get("language")),
        "card": json.dumps(card, ensure_ascii=False),
        "base_key": (found["base_name"] or "").lower(),
    }
    return row | {column: found[column] for column in IN_NAMES}, topics


def _close(kept: tuple[threading.Thread, sqlite3.Connection, sqlite3.Connection]) -> None:
    for connection in kept[1:]:  # the guard last
        with contextlib.suppress(sqlite3.Error):
            connection.close()


def _id_of(connection: sqlite3.Connection, name: str) -> int | None:
    row = connection.execute("SELECT id FROM names WHERE name = ?", (name,)).fetchone()
    return row[0] if row else None


def _insert(connection: sqlite3.Connection, table: str, row: Mapping[str, Any]) -> int:
    marks = ", ".join("?" * len(row))
    sql = f"INSERT INTO {table} ({', '.join(row)}) VALUES ({marks})"
    return connection.execute(sql, tuple(row.values())).lastrowid or 0


@contextmanager
def transaction(connection: sqlite3.Connection) -> Iterator[None]:
    connection.execute("BEGIN IMMEDIATE")
    try:
        yield
    except BaseException:
        if connection.in_transaction:
            connection.execute("ROLLBACK")
        raise
    connection.execute("COMMIT")


def is_damage(error: sqlite3.Error) -> bool:
    """Whether the file is at fault: damaged, not SQLite, or without the tables it should have."""
    code = getattr(error, "sqlite_errorcode", 0) & 0xFF
    return code in _DAMAGE or str(error).startswith("no such")


def failure(error: sqlite3.Error, home: Home) -> AdapterHubError:
    code = getattr(error, "sqlite_errorcode", 0) & 0xFF
    if code == _FULL:
        return OutputError(
            f"disk full while writing {home.index}",
            remedy="free some space, or set $ADAPTERHUB_HOME to a larger disk",
        )
    if code == _READONLY:
        return OutputError(
            f"home is not writable: {home.root} ({error})",
            remedy="correct its permissions, or set $ADAPTERHUB_HOME to a directory of yours",
        )
    return StoreError(
        f"SQLite cannot use {home.index}: {error}",
        remedy="delete index.db (nothing is lost: it is made again), or wait for its other users",
    )
