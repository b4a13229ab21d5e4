"""The tables of index.db, and the columns that come from a manifest."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Mapping, Sequence
from typing import Any

_MAX_INTEGER = 2**63 - 1
FACTS = {
    "method": str,
    "variants": str,
    "format": str,
    "rank_min": int,
    "rank_max": int,
    "task": str,
    "dtype": str,
    "parameters": int,
    "bytes": int,
    "base_name": str,
    "base_structure_root": str,
    "base_weights_root": str,
    "labels": str,
}
IN_NAMES = (
    "method",
    "task",
    "rank_min",
    "rank_max",
    "base_name",
    "base_structure_root",
    "base_weights_root",
)


# --- migrations: append only ----------------------------------------------------------------------


def m001_create_tables(connection: sqlite3.Connection) -> None:
    from sqlite_utils import Database

    db = Database(connection, execute_plugins=False)
    in_names = {column: FACTS[column] for column in IN_NAMES}
    texts = ("name", "reversed", "digest", "created", "updated", "description", "licence")
    columns = {"id": int, **dict.fromkeys((*texts, "language", "card"), str), **in_names}
    db["names"].create({**columns, "base_key": str}, pk="id")
    db["names"].create_index(["name"], unique=True)
    db["names"].create_index(["reversed"])
    db["names"].create_index(["base_structure_root"])
    db["names"].create_index(["base_weights_root"])
    # these two hold all that filters look at, so that a page is one walk along one of them
    filters = ["method", "task", "licence", "rank_min", "rank_max", "base_key"]
    db["names"].create_index(["updated", "name", *filters], index_name="by_updated")
    db["names"].create_index(["name", "updated", *filters], index_name="by_name")
    versions = {"id": int, "digest": str, "added": str, **FACTS}
    db["versions"].create(versions, pk=("id", "digest"))
    db["versions"].create_index(["digest"])
    db["tags"].create({"id": int, "tag": str, "digest": str}, pk=("id", "tag"))
    db["tags"].create_index(["tag", "id"])
    db["topics"].create({"id": int, "topic": str}, pk=("id", "topic"))
    db["topics"].create_index(["topic", "id"])
    db["logs"].create({"name": str, "last": str}, pk="name")
    db["meta"].create({"key": str, "value": int}, pk="key")
    db.execute(
        "CREATE VIRTUAL TABLE fts USING fts5(name, description, topics, base, labels, task, method,"
        " tokenize = 'unicode61', prefix = '1 2 3')"
    )


MIGRATIONS = (m001_create_tables,)


# --- rows from manifests --------------------------------------------------------------------------


def facts(manifest: Mapping[str, Any]) -> dict[str, Any]:
    """The columns of a version. Fields that are missing or of another type become None."""
    rank = _mapping(manifest.get("rank"))
    base = _mapping(manifest.get("base"))
    files_ = [_mapping(each) for each in _list(manifest.get("files"))]
    found = {
        "method": manifest.get("method"),
        "variants": texts_of(manifest.get("variants")),
        "format": manifest.get("format"),
        "rank_min": rank.get("min"),
        "rank_max": rank.get("max"),
        "task": manifest.get("task"),
        "dtype": manifest.get("dtype"),
        "parameters": manifest.get("parameters"),
        "bytes": sum(_integer(each.get("size")) or 0 for each in files_),
        "base_name": base.get("name"),
        "base_structure_root": base.get("structure_root"),
        "base_weights_root": base.get("weights_root"),
        "labels": texts_of(manifest.get("labels")),
    }
    return {
        column: _integer(found[column]) if kind is int else text_of(found[column])
        for column, kind in FACTS.items()
    }


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def _list(value: Any) -> Sequence[Any]:
    return value if isinstance(value, (list, tuple)) else ()


def text_of(value: Any) -> str | None:
    return value if isinstance(value, str) else None


def texts_of(value: Any) -> str:
    """A JSON list of the texts in `value`."""
    one = [value] if isinstance(value, str) else _list(value)
    return json.dumps([each for each in one if isinstance(each, str)], ensure_ascii=False)


def _integer(value: Any) -> int | None:
    fits = isinstance(value, int) and not isinstance(value, bool) and abs(value) <= _MAX_INTEGER
    return value if fits else None
