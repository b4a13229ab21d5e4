"""Dropping what no branch, tag or pull request reaches any more."""

from __future__ import annotations

import time
from collections.abc import Callable

from adapterhub.hub.state.commits import Commits
from adapterhub.hub.state.database import Database
from adapterhub.hub.state.repositories import Repository
from adapterhub.hub.state.trees import File, Folder, Trees

_DEAD = """
WITH RECURSIVE live (id) AS (
    SELECT target FROM refs WHERE repository = :key
    UNION SELECT base FROM pulls WHERE repository = :key
    UNION SELECT merged FROM pulls WHERE repository = :key AND merged IS NOT NULL
    UNION SELECT c.parent FROM live JOIN commits c ON c.repository = :key AND c.id = live.id
)
SELECT number FROM commits WHERE repository = :key AND id NOT IN (SELECT id FROM live WHERE id
IS NOT NULL)
"""


class Pruning:
    def __init__(
        self, database: Database, commits: Commits, now: Callable[[], float] = time.time
    ) -> None:
        self._database = database
        self._commits = commits
        self._now = now

    def run(self, repository: Repository) -> int:
        """How many commits went. Their contents stay a week, and are `gc`'s then."""
        with self._database.transaction() as connection:
            key = repository.key
            dead = connection.execute(_DEAD, {"key": key}).fetchall()
            if not dead:
                return 0
            connection.executemany("DELETE FROM commits WHERE number = ?", dead)
            numbers = {number for (number,) in dead}
            sql = "SELECT path, number FROM changes WHERE repository = ?"
            rows = [row for row in connection.execute(sql, (key,)) if row[1] in numbers]
            sql = "DELETE FROM changes WHERE repository = ? AND path = ? AND number = ?"
            connection.executemany(sql, [(key, *row) for row in rows])
            self._sweep(repository)
            return len(dead)

    def _sweep(self, repository: Repository) -> None:
        connection, key = self._database.connection(), repository.key
        folders, digests = self._live(repository)
        known = connection.execute("SELECT key FROM trees WHERE repository = ?", (key,)).fetchall()
        gone = [(key, tree) for (tree,) in known if tree not in folders]
        connection.executemany("DELETE FROM trees WHERE repository = ? AND key = ?", gone)
        sql = "SELECT digest FROM contents WHERE repository = ? AND committed"
        kept = connection.execute(sql, (key,)).fetchall()
        loose = [(int(self._now()), key, each) for (each,) in kept if each not in digests]
        sql = "UPDATE contents SET committed = 0, delivered = ? WHERE repository = ? AND digest = ?"
        connection.executemany(sql, loose)

    def _live(self, repository: Repository) -> tuple[set[str], set[str]]:
        """Keys of all that a commit's tree consists of, digests of all its files."""
        sql = "SELECT DISTINCT tree FROM commits WHERE repository = ?"
        rows = self._database.rows(sql, (repository.key,))
        waiting = [tree for (tree,) in rows]
        trees = self._commits.trees(repository)
        seen: set[str] = set()
        digests: set[str] = set()
        while waiting:
            key = waiting.pop()
            if key not in seen:
                seen.add(key)
                waiting += self._below(trees, key, seen, digests)
        return seen, digests

    def _below(self, trees: Trees, key: str, seen: set[str], digests: set[str]) -> list[str]:
        pieces = trees.keys(key)
        if pieces != {key}:
            return [each for each in pieces if each not in seen]
        nodes = trees.nodes(key).values()
        digests.update(node.digest for node in nodes if isinstance(node, File))
        return [node.key for node in nodes if isinstance(node, Folder) and node.key not in seen]
