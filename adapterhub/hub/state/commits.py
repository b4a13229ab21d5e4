"""History: commits, logs, files of a revision."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace

from adapterhub.hub.state import objects, trees
from adapterhub.hub.state.database import Database
from adapterhub.hub.state.edit import Edit
from adapterhub.hub.state.errors import EntryNotFound, RevisionNotFound
from adapterhub.hub.state.limits import Limits
from adapterhub.hub.state.model import Commit, Entry, Found, Listing, Log
from adapterhub.hub.state.paths import shown
from adapterhub.hub.state.repositories import Repository
from adapterhub.hub.state.trees import File, Folder, Node, Trees

_COLUMNS = "id, parent, tree, author, created, title, message, fingerprint, depth, number"
# A commit and its ancestors, the newest first. Values: repository, commit, repository.
_CHAIN = """
WITH RECURSIVE chain (id, parent, depth, number) AS (
    SELECT id, parent, depth, number FROM commits WHERE repository = ? AND id = ?
    UNION ALL
    SELECT c.id, c.parent, c.depth, c.number FROM chain
    JOIN commits c ON c.repository = ? AND c.id = chain.parent
)
"""


@dataclass(frozen=True)
class Text:
    """Who says what in a commit; `fingerprint` is that of the request."""

    author: str
    title: str
    message: str = ""
    fingerprint: str = ""


class Commits:
    def __init__(
        self, database: Database, limits: Limits, now: Callable[[], float] = time.time
    ) -> None:
        self._database = database
        self._limits = limits
        self._now = now

    def get(self, repository: Repository, id: str) -> Commit:
        """By its 40 digits. Raises RevisionNotFound."""
        sql = f"SELECT {_COLUMNS} FROM commits WHERE repository = ? AND id = ?"
        row = self._database.row(sql, (repository.key, id))
        if row is None:
            raise RevisionNotFound(
                f"{repository.id} has no commit {shown(id)}", remedy="list its commits"
            )
        return Commit(*row)

    def trees(self, repository: Repository) -> Trees:
        return Trees(self._database.connection(), repository.key)

    # --- files of a revision

    def file(self, repository: Repository, commit: Commit, path: str) -> Found:
        node = self._find(repository, commit, path)
        if isinstance(node, Folder):
            raise EntryNotFound(
                f"{shown(path)} is a folder, not a file", remedy="list it", commit=commit.id
            )
        return Found(commit, path, node)

    def tree(
        self,
        repository: Repository,
        commit: Commit,
        folder: str,
        *,
        recursive: bool,
        expand: bool,
        limit: int,
        after: str,
    ) -> Listing:
        root = commit.tree
        if folder:
            node = self._find(repository, commit, folder)
            if isinstance(node, File):
                raise EntryNotFound(
                    f"{shown(folder)} is a file, not a folder", remedy="get it", commit=commit.id
                )
            root = node.key
        walk = self.trees(repository).walk(root, folder, recursive=recursive, after=after)
        entries = [Entry(path, node) for (path, node), _ in zip(walk, range(limit + 1))]  # noqa: B905
        more = entries[limit - 1].path if len(entries) > limit else None
        return Listing(commit, self._expanded(repository, commit, entries[:limit], expand), more)

    def paths(
        self, repository: Repository, commit: Commit, paths: Sequence[str], *, expand: bool
    ) -> Listing:
        entries = []
        for path in dict.fromkeys(each.rstrip("/") for each in paths):
            try:
                entries.append(Entry(path, self._find(repository, commit, path)))
            except EntryNotFound:
                continue
        return Listing(commit, self._expanded(repository, commit, entries, expand), None)

    def _find(self, repository: Repository, commit: Commit, path: str) -> Node:
        try:
            return self.trees(repository).find(commit.tree, path)
        except EntryNotFound as error:
            raise EntryNotFound(error.message, remedy=error.remedy, commit=commit.id) from None

    # --- history

    def log(self, repository: Repository, commit: Commit, limit: int, after: str | None) -> Log:
        """`after`: the id of the page before's last one, which must be an ancestor of `commit`."""
        first = commit
        if after is not None:
            first = self.get(repository, after)
            if not self.is_ancestor(repository, first, commit):
                raise RevisionNotFound(
                    f"{shown(after)} does not belong to this history", remedy="begin anew"
                )
        page = self.chain(repository, first, limit + 2)
        page = page[1:] if after is not None else page
        more = page[limit - 1].id if len(page) > limit else None
        return Log(tuple(page[:limit]), commit.depth, more)

    def chain(self, repository: Repository, commit: Commit, limit: int) -> list[Commit]:
        """A commit and those before it, at most `limit` in all."""
        columns = ", ".join(f"commits.{column}" for column in _COLUMNS.split(", "))
        sql = (
            f"{_CHAIN} SELECT {columns} FROM (SELECT number FROM chain LIMIT ?) c"
            " JOIN commits ON commits.number = c.number ORDER BY commits.depth DESC"
        )
        values = (repository.key, commit.id, repository.key, limit)
        return [Commit(*row) for row in self._database.rows(sql, values)]

    def is_ancestor(self, repository: Repository, old: Commit, new: Commit) -> bool:
        """Whether `old` is `new`, or comes before it."""
        steps = new.depth - old.depth
        if steps < 0:
            return False
        sql = f"{_CHAIN} SELECT id FROM chain LIMIT 1 OFFSET ?"
        values = (repository.key, new.id, repository.key, steps)
        return self._database.row(sql, values) == (old.id,)

    def follower(
        self, repository: Repository, parent: Commit, head: Commit, fingerprint: str
    ) -> Commit | None:
        """What the same request has made of `parent`, if that is part of the head's history."""
        sql = f"SELECT {_COLUMNS} FROM commits WHERE repository = ? AND parent = ?"
        sql += " AND fingerprint = ?"
        rows = self._database.rows(sql, (repository.key, parent.id, fingerprint))
        found = (Commit(*row) for row in rows)
        return next((c for c in found if self.is_ancestor(repository, c, head)), None)

    def last(
        self, repository: Repository, commit: Commit, paths: Iterable[str]
    ) -> dict[str, Commit]:
        """Of each path that is there in `commit`, the commit that changed it last."""
        sql = f"{_CHAIN} SELECT number FROM chain"
        values = (repository.key, commit.id, repository.key)
        chain = {number for (number,) in self._database.rows(sql, values)}
        known: dict[int, Commit] = {}
        found: dict[str, Commit] = {}
        for path in paths:
            number = self._last_number(repository, path, chain)
            if number is not None:
                known[number] = known.get(number) or self._numbered(number)
                found[path] = known[number]
        return found

    def _last_number(self, repository: Repository, path: str, chain: set[int]) -> int | None:
        sql = "SELECT number FROM changes WHERE repository = ? AND path = ? ORDER BY number DESC"
        rows = self._database.connection().execute(sql, (repository.key, path))
        return next((number for (number,) in rows if number in chain), None)

    def _numbered(self, number: int) -> Commit:
        row = self._database.rows(f"SELECT {_COLUMNS} FROM commits WHERE number = ?", (number,))[0]
        return Commit(*row)

    def _expanded(
        self, repository: Repository, commit: Commit, entries: list[Entry], expand: bool
    ) -> tuple[Entry, ...]:
        if not expand:
            return tuple(entries)
        last = self.last(repository, commit, (entry.path for entry in entries))
        return tuple(replace(entry, last=last.get(entry.path)) for entry in entries)

    # --- making

    def insert(
        self, repository: Repository, parent: Commit | None, edit: Edit, text: Text
    ) -> Commit:
        """Writes the tree of an edit of the parent's and its commit; no ref yet.

        Raises InvalidPath, TooLarge.
        """
        root = edit.save()
        self._limits.check("files", root.files, f"files in {repository.id}")
        with self._database.transaction() as connection:
            trees.store(connection, repository.key, edit.written)
            return self._insert(repository, parent, root, text)

    def insert_root(self, repository: Repository, tree: str, text: Text) -> Commit:
        """A commit without a parent, of a tree that is stored already."""
        return self._insert(repository, None, self.trees(repository).folder(tree), text)

    def _insert(
        self, repository: Repository, parent: Commit | None, root: Folder, text: Text
    ) -> Commit:
        before, created = parent.id if parent else None, int(self._now())
        said = f"{text.title}\n\n{text.message}" if text.message else text.title
        id = objects.commit_oid(root.oid, before, text.author, created, said, root.key)
        known = "SELECT number FROM commits WHERE repository = ? AND id = ?"
        if self._database.row(known, (repository.key, id)):
            return self.get(repository, id)  # another branch got the same within this second
        depth = parent.depth + 1 if parent else 1
        values = (id, before, root.key, text.author, created, text.title, text.message)
        with self._database.transaction() as connection:
            number = connection.execute(
                "INSERT INTO commits (id, parent, tree, author, created, title, message,"
                " fingerprint, depth, repository) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
                (*values, text.fingerprint, depth, repository.key),
            ).lastrowid
            old = parent.tree if parent else None
            changed = self.trees(repository).changes(old, root.key)
            rows = [(repository.key, path, number) for path, _, now in changed if now is not None]
            connection.executemany("INSERT INTO changes VALUES (?, ?, ?)", rows)
            return self.get(repository, id)
