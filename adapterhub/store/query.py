"""Questions to the index: pages of a list, search, and names that are nearly right."""

from __future__ import annotations

import difflib
import json
import sqlite3
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from adapterhub.errors import InvalidOption
from adapterhub.store.names import LATEST

ORDERS = ("updated", "name")
RANKED = 2000
"""More matches than this are not ranked by bm25: words that common do not tell adapters apart."""
MAX_LIMIT = 10_000
_TERMS = 16
_TERM_CHARACTERS = 64
_WEIGHTS = "8.0, 2.0, 4.0, 2.0, 1.0, 2.0, 2.0"
_PLENTY = 5000


@dataclass(frozen=True)
class Filters:
    """What a row must be. None does not matter; several must all hold.

    `base` is a part of the base's name, or the beginning of one of its roots (`sha256:…`).
    `rank_min` and `rank_max` enclose every rank of the adapter. `text` is searched for as in
    `search`, without a ranking.
    """

    method: str | None = None
    base: str | None = None
    rank_min: int | None = None
    rank_max: int | None = None
    task: str | None = None
    tag: str | None = None
    topic: str | None = None
    licence: str | None = None
    text: str | None = None


@dataclass(frozen=True)
class Row:
    """A live name, its card, and the facts of its latest version. `bytes` counts its files."""

    name: str
    digest: str
    created: str
    updated: str
    description: str | None
    licence: str | None
    language: tuple[str, ...]
    topics: tuple[str, ...]
    tags: Mapping[str, str]
    versions: int
    method: str | None
    variants: tuple[str, ...]
    format: str | None
    rank_min: int | None
    rank_max: int | None
    task: str | None
    labels: tuple[str, ...]
    dtype: str | None
    parameters: int | None
    bytes: int | None
    base_name: str | None
    base_structure_root: str | None
    base_weights_root: str | None
    card: Mapping[str, Any]
    cursor: str


@dataclass(frozen=True)
class Condition:
    """An SQL expression over `names` and the values of its marks."""

    sql: str
    values: tuple[Any, ...] = ()


# --- filters → SQL --------------------------------------------------------------------------------


def conditions(connection: sqlite3.Connection, filters: Filters) -> list[Condition]:
    """What `filters` mean in SQL. They are met along one covering index, row by row."""
    found = [
        Condition(f"names.{column} = ?", (value,))
        for column, value in (
            ("method", filters.method),
            ("task", filters.task),
            ("licence", filters.licence),
        )
        if value is not None
    ]
    if filters.rank_min is not None:
        found.append(Condition("names.rank_min >= ?", (_bounded(filters.rank_min),)))
    if filters.rank_max is not None:
        found.append(Condition("names.rank_max <= ?", (_bounded(filters.rank_max),)))
    if filters.base is not None:
        found.append(_base(filters.base))
    if filters.tag is not None and filters.tag != LATEST:  # every live name has `latest`
        found.append(_member(connection, "tags", "tag", filters.tag))
    if filters.topic is not None:
        found.append(_member(connection, "topics", "topic", filters.topic))
    return found


def _bounded(rank: int) -> int:
    return max(-(2**62), min(rank, 2**62))


def _base(base: str) -> Condition:
    if base.startswith("sha256:"):
        ends = (base, base + "g")  # "g" follows the last hexadecimal digit
        columns = ("base_structure_root", "base_weights_root")
        parts = [f"SELECT id FROM names WHERE {c} >= ? AND {c} < ?" for c in columns]
        return Condition(f"names.id IN ({' UNION '.join(parts)})", ends * 2)
    return Condition("instr(names.base_key, ?) > 0", (base.lower(),))


def _member(connection: sqlite3.Connection, table: str, column: str, value: str) -> Condition:
    """Rare values: by a set of them. Common ones: asked of each row, since a page fills soon."""
    sql = f"SELECT count(*) FROM (SELECT 1 FROM {table} WHERE {column} = ? LIMIT {_PLENTY})"
    (count,) = connection.execute(sql, (value,)).fetchone()
    if count < _PLENTY:
        return Condition(f"names.id IN (SELECT id FROM {table} WHERE {column} = ?)", (value,))
    inner = f"SELECT 1 FROM {table} AS m WHERE m.id = names.id AND m.{column} = ?"
    return Condition(f"EXISTS ({inner})", (value,))


def match_expression(text: str) -> str | None:
    """The FTS5 query for what a person typed: every word, as a beginning. None: nothing to find.

    Words are quoted, so that no operator, bracket or quotation mark of theirs means anything.
    """
    words = text.replace("\0", " ").split()[:_TERMS]
    useful = [word[:_TERM_CHARACTERS] for word in words if any(map(str.isalnum, word))]
    quoted = ['"' + word.replace('"', '""') + '"*' for word in useful]
    return " ".join(quoted) or None


# --- pages ----------------------------------------------------------------------------------------


def page(
    connection: sqlite3.Connection,
    filters: Filters,
    order: str,
    limit: int,
    offset: int,
    after: str | None,
) -> tuple[Row, ...]:
    """`limit` rows; newest first by `updated`, or by `name`. `after`: the cursor of a row."""
    _check_page(order, limit, offset)
    where = conditions(connection, filters)
    text = _text_condition(filters.text)
    if filters.text and text is None:
        return ()
    where += [text] if text else []
    if after is not None:
        where.append(_after(order, after))
    direction = "DESC" if order == "updated" else "ASC"
    columns = f"names.updated {direction}, names.name {direction}"
    columns = columns if order == "updated" else "names.name ASC"
    sql = (
        f"SELECT names.id FROM names INDEXED BY by_{order}{_where(where)}"
        f" ORDER BY {columns} LIMIT ? OFFSET ?"
    )
    ids = [row[0] for row in connection.execute(sql, (*_values(where), limit, offset))]
    return rows(connection, ids, order)


def count(connection: sqlite3.Connection, filters: Filters) -> int:
    where = conditions(connection, filters)
    text = _text_condition(filters.text)
    if filters.text and text is None:
        return 0
    where += [text] if text else []
    sql = f"SELECT count(*) FROM names INDEXED BY by_name{_where(where)}"
    (number,) = connection.execute(sql, _values(where)).fetchone()
    return int(number)


def search(
    connection: sqlite3.Connection, text: str, filters: Filters, limit: int
) -> tuple[Row, ...]:
    """Rows that contain every word of `text`, best first; the exact name before all.

    Best by bm25, with the name counting most; newest first where more than `RANKED` match.
    """
    _check_page("name", limit, 0)
    parts = [match_expression(each) for each in (text, filters.text) if each]
    if not parts or None in parts:
        return ()
    expression = " ".join(filter(None, parts))
    where = conditions(connection, filters)
    ranked = _ranked(connection, expression, where)
    if ranked is None:
        ranked = _newest(connection, expression, where, limit)
    exact = _exact(connection, text.strip(), where)
    best = exact + [key for key in ranked if key not in exact]
    return rows(connection, best[:limit], "name")


def _ranked(
    connection: sqlite3.Connection, expression: str, where: list[Condition]
) -> list[int] | None:
    """Ids of the matches, best first; None where there are too many to rank."""
    some = f"SELECT rowid FROM fts WHERE fts MATCH ? LIMIT {RANKED + 1}"
    if len(connection.execute(some, (expression,)).fetchall()) > RANKED:
        return None
    sql = (
        f"SELECT names.id FROM fts CROSS JOIN names ON names.id = fts.rowid"
        f"{_where([Condition('fts MATCH ?', (expression,)), *where])}"
        f" ORDER BY bm25(fts, {_WEIGHTS}), names.id DESC"
    )
    return [row[0] for row in connection.execute(sql, (expression, *_values(where)))]


def _newest(
    connection: sqlite3.Connection, expression: str, where: list[Condition], limit: int
) -> list[int]:
    """Ids of the newest matches. Filters that let much through are met among the very newest;
    for the others, the set of what they let through is small."""
    first = f"SELECT rowid FROM fts WHERE fts MATCH ? ORDER BY rowid DESC LIMIT {RANKED}"
    sql = (
        f"SELECT names.id FROM ({first}) AS f CROSS JOIN names ON names.id = f.rowid"
        f"{_where(where)} LIMIT ?"
    )
    some = connection.execute(sql, (expression, *_values(where), limit)).fetchall()
    if len(some) < limit:
        inner = f"SELECT names.id FROM names INDEXED BY by_name{_where(where)}"
        sql = f"SELECT rowid FROM fts WHERE fts MATCH ? AND +rowid IN ({inner})"
        sql += " ORDER BY rowid DESC LIMIT ?"
        some = connection.execute(sql, (expression, *_values(where), limit)).fetchall()
    return [row[0] for row in some]


def _exact(connection: sqlite3.Connection, name: str, where: list[Condition]) -> list[int]:
    both = [Condition("names.name = ?", (name,)), *where]
    sql = f"SELECT names.id FROM names{_where(both)}"
    return [row[0] for row in connection.execute(sql, _values(both))]


def _check_page(order: str, limit: int, offset: int) -> None:
    if order not in ORDERS:
        raise InvalidOption(f"order {order!r} is unknown", remedy=f"use {' or '.join(ORDERS)}")
    if not 0 <= limit <= MAX_LIMIT or not 0 <= offset < 2**62:
        raise InvalidOption(
            f"limit {limit} or offset {offset} is out of range",
            remedy=f"use a limit of 0 to {MAX_LIMIT} and an offset of 0 or more",
        )


def _text_condition(text: str | None) -> Condition | None:
    expression = match_expression(text) if text else None
    if expression is None:
        return None
    return Condition("names.id IN (SELECT rowid FROM fts WHERE fts MATCH ?)", (expression,))


def _after(order: str, cursor: str) -> Condition:
    updated, bar, name = cursor.partition("|")
    if not bar:
        raise InvalidOption(f"cursor {cursor!r} is malformed", remedy="take `cursor` of a row")
    if order == "name":
        return Condition("names.name > ?", (name,))
    return Condition("(names.updated, names.name) < (?, ?)", (updated, name))


def _where(parts: Sequence[Condition]) -> str:
    return " WHERE " + " AND ".join(f"({part.sql})" for part in parts) if parts else ""


def _values(parts: Iterable[Condition]) -> tuple[Any, ...]:
    return tuple(value for part in parts for value in part.values)


# --- rows -----------------------------------------------------------------------------------------


def rows(connection: sqlite3.Connection, ids: Sequence[int], order: str) -> tuple[Row, ...]:
    """The rows of these names, in this order."""
    if not ids:
        return ()
    wanted = json.dumps(list(ids))
    each = "(SELECT value FROM json_each(?))"
    tags: dict[int, dict[str, str]] = {}
    for key, tag, digest in connection.execute(
        f"SELECT id, tag, digest FROM tags WHERE id IN {each} ORDER BY tag", (wanted,)
    ):
        tags.setdefault(key, {})[tag] = digest
    topics: dict[int, list[str]] = {}
    sql = f"SELECT id, topic FROM topics WHERE id IN {each} ORDER BY rowid"
    for key, topic in connection.execute(sql, (wanted,)):
        topics.setdefault(key, []).append(topic)
    cursor = connection.execute(
        "SELECT versions.*, names.*, (SELECT count(*) FROM versions v WHERE v.id = names.id) AS n"
        " FROM names JOIN versions ON versions.id = names.id AND versions.digest = names.digest"
        f" WHERE names.id IN {each}",
        (wanted,),
    )
    columns = [column[0] for column in cursor.description]
    found = {row["id"]: row for row in (dict(zip(columns, r, strict=True)) for r in cursor)}
    return tuple(
        _row(found[key], tags.get(key, {}), topics.get(key, [])) for key in ids if key in found
    )


def _row(row: Mapping[str, Any], tags: Mapping[str, str], topics: Iterable[str]) -> Row:
    lists: dict[str, Any] = {
        key: tuple(json.loads(row[key])) for key in ("language", "variants", "labels")
    }
    own = Row.__dataclass_fields__.keys() & row.keys() - lists.keys() - {"card"}
    plain: dict[str, Any] = {key: row[key] for key in own}
    return Row(
        **plain,
        **lists,
        topics=tuple(topics),
        tags=tags,
        versions=row["n"],
        card=json.loads(row["card"]),
        cursor=f"{row['updated']}|{row['name']}",
    )


# --- names ----------------------------------------------------------------------------------------


def names(connection: sqlite3.Connection, prefix: str, limit: int | None) -> tuple[str, ...]:
    """Live names that begin with `prefix`, sorted."""
    sql = "SELECT name FROM names WHERE name >= ? AND name < ? ORDER BY name LIMIT ?"
    ends = (prefix, prefix + "\U0010ffff", -1 if limit is None else limit)
    return tuple(row[0] for row in connection.execute(sql, ends))


def nearest(connection: sqlite3.Connection, name: str, limit: int) -> tuple[str, ...]:
    """Live names that `name` may be a misspelling of, best first.

    Candidates come from five places, each a short walk along an index: the sorted neighbours of
    the name and of its mirror image (right beginnings, right ends), the names that one deleted
    or swapped character leads to, and names that share a whole word.
    """
    short = name[:128].lower()
    candidates = set(_neighbours(connection, "name", short))
    candidates |= {n[::-1] for n in _neighbours(connection, "reversed", short[::-1])}
    variants = json.dumps(_variants(short))
    sql = "SELECT name FROM names WHERE name IN (SELECT value FROM json_each(?))"
    candidates |= {row[0] for row in connection.execute(sql, (variants,))}
    expression = match_expression(" ".join(_words(short)))
    if expression:
        either = "{name} : (" + expression.replace("* ", "* OR ") + ")"
        sql = "SELECT name FROM fts WHERE fts MATCH ? ORDER BY rowid DESC LIMIT 60"
        candidates |= {row[0] for row in connection.execute(sql, (either,))}
    return tuple(difflib.get_close_matches(short, sorted(candidates), limit, 0.6))


def _neighbours(connection: sqlite3.Connection, column: str, text: str) -> list[str]:
    up = f"SELECT {column} FROM names WHERE {column} >= ? ORDER BY {column} LIMIT 40"
    down = f"SELECT {column} FROM names WHERE {column} < ? ORDER BY {column} DESC LIMIT 40"
    return [row[0] for sql in (up, down) for row in connection.execute(sql, (text,))]


def _variants(name: str) -> list[str]:
    deleted = [name[:i] + name[i + 1 :] for i in range(len(name))]
    swapped = [name[:i] + name[i + 1] + name[i] + name[i + 2 :] for i in range(len(name) - 1)]
    return deleted + swapped


def _words(name: str) -> list[str]:
    cut = "".join(c if c.isalnum() else " " for c in name)
    return [word for word in cut.split() if len(word) > 1]
