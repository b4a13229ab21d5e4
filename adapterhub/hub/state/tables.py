"""hub.db's schema: numbered steps, each run once, in order; a new one is appended."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable


def m001_create(connection: sqlite3.Connection) -> None:
    for statement in _FIRST.split(";\n"):
        if statement.strip():
            connection.execute(statement)


# `gc_roots` is what the store's collector reads: it needs neither this package nor its tables.
# What was delivered and is in no commit yet stays for a week. `changes` says which commit touched
# which file or folder, so that nobody has to walk the history for a file's last commit.
_FIRST = """
CREATE TABLE repositories (
    key INTEGER PRIMARY KEY AUTOINCREMENT,
    kind TEXT NOT NULL,
    namespace TEXT NOT NULL COLLATE NOCASE,
    name TEXT NOT NULL COLLATE NOCASE,
    private INTEGER NOT NULL,
    gated TEXT NOT NULL DEFAULT '',
    created INTEGER NOT NULL,
    updated INTEGER NOT NULL,
    stored INTEGER NOT NULL DEFAULT 0,
    indexed TEXT,
    info TEXT NOT NULL DEFAULT '{}',
    UNIQUE (kind, namespace, name)
);
CREATE INDEX repositories_by_age ON repositories (kind, updated, key);
CREATE TABLE labels (
    repository INTEGER NOT NULL REFERENCES repositories ON DELETE CASCADE,
    label TEXT NOT NULL,
    PRIMARY KEY (repository, label)
) WITHOUT ROWID;
CREATE TABLE contents (
    repository INTEGER NOT NULL REFERENCES repositories ON DELETE CASCADE,
    digest TEXT NOT NULL,
    size INTEGER NOT NULL,
    oid TEXT,
    delivered INTEGER NOT NULL,
    committed INTEGER NOT NULL DEFAULT 0,
    PRIMARY KEY (repository, digest)
) WITHOUT ROWID;
CREATE INDEX contents_waiting ON contents (repository, delivered) WHERE NOT committed;
CREATE VIEW gc_roots (digest) AS
    SELECT DISTINCT digest FROM contents
    WHERE committed OR delivered > CAST(strftime('%s', 'now') AS INTEGER) - 604800;
CREATE TABLE trees (
    repository INTEGER NOT NULL REFERENCES repositories ON DELETE CASCADE,
    key TEXT NOT NULL,
    body BLOB NOT NULL,
    PRIMARY KEY (repository, key)
);
CREATE TABLE commits (
    number INTEGER PRIMARY KEY AUTOINCREMENT,
    repository INTEGER NOT NULL REFERENCES repositories ON DELETE CASCADE,
    id TEXT NOT NULL,
    parent TEXT,
    tree TEXT NOT NULL,
    author TEXT NOT NULL,
    created INTEGER NOT NULL,
    title TEXT NOT NULL,
    message TEXT NOT NULL,
    fingerprint TEXT NOT NULL,
    depth INTEGER NOT NULL,
    UNIQUE (repository, id)
);
CREATE INDEX commits_by_parent ON commits (repository, parent, fingerprint);
CREATE TABLE changes (
    repository INTEGER NOT NULL REFERENCES repositories ON DELETE CASCADE,
    path TEXT NOT NULL,
    number INTEGER NOT NULL,
    PRIMARY KEY (repository, path, number)
) WITHOUT ROWID;
CREATE TABLE refs (
    repository INTEGER NOT NULL REFERENCES repositories ON DELETE CASCADE,
    name TEXT NOT NULL,
    target TEXT NOT NULL,
    message TEXT NOT NULL DEFAULT '',
    PRIMARY KEY (repository, name)
) WITHOUT ROWID;
CREATE TABLE pulls (
    repository INTEGER NOT NULL REFERENCES repositories ON DELETE CASCADE,
    number INTEGER NOT NULL,
    title TEXT NOT NULL,
    description TEXT NOT NULL,
    author TEXT NOT NULL,
    status TEXT NOT NULL,
    target TEXT NOT NULL,
    base TEXT NOT NULL,
    merged TEXT,
    created INTEGER NOT NULL,
    PRIMARY KEY (repository, number)
) WITHOUT ROWID;
CREATE TABLE tokens (
    id TEXT PRIMARY KEY,
    hash BLOB NOT NULL,
    label TEXT NOT NULL,
    role TEXT NOT NULL,
    namespaces TEXT NOT NULL,
    created INTEGER NOT NULL,
    expires INTEGER,
    used INTEGER,
    revoked INTEGER
) WITHOUT ROWID;
"""

MIGRATIONS: tuple[Callable[[sqlite3.Connection], None], ...] = (m001_create,)
