from __future__ import annotations

import sqlite3
import threading
from pathlib import Path
from typing import Any

import pytest
import storekit
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from adapterhub.errors import InvalidOption
from adapterhub.store import Filters, Store, home, index, query

ANY_TEXT = st.text(st.characters(codec="utf-8"), max_size=60)
HOSTILE = [
    '"',
    "'",
    "a OR",
    "NEAR(",
    "*",
    "a*b",
    "^x",
    "-a",
    "name:x",
    "{a b}",
    "\0",
    "(",
    "%",
    "_",
]
HOSTILE += [
    "'; DROP TABLE names; --",
    "a\0b",
    "\u202e",
    "AND",
    "nli NOT",
    "x" * 10_000,
    "a " * 5000,
]


def fill(store: Store) -> None:
    base = {"name": "Other/Base-7B", "structure_root": "sha256:" + "cd" * 32}
    sets: list[tuple[str, dict[str, Any], dict[str, Any]]] = [
        ("nli-graph", {}, {"topics": ["nli", "graphs"], "licence": "mit"}),
        ("team/summary", {"task": "SEQ_2_SEQ_LM"}, {"description": "Shortens clinical notes"}),
        ("relations", {"base": base, "rank": {"min": 4, "max": 64}}, {"topics": ["nli"]}),
        ("plain", {"method": "ia3", "rank": None, "task": None, "labels": None}, {}),
    ]
    for number, (name, changes, card) in enumerate(sets):
        storekit.add(store, name, number, changes=changes, card=card)
    store.tag("relations", store.resolve("relations")[1], "production")


def found(store: Store, **filters: Any) -> list[str]:
    return sorted(row.name for row in store.list(Filters(**filters)))


FILTERS: list[tuple[dict[str, Any], list[str]]] = [
    ({}, ["nli-graph", "plain", "relations", "team/summary"]),
    ({"method": "ia3"}, ["plain"]),
    ({"base": "minilm"}, ["nli-graph", "plain", "team/summary"]),
    ({"base": "Other/Base-7B"}, ["relations"]),
    ({"base": "sha256:cdcd"}, ["relations"]),
    ({"base": "sha256:"}, ["nli-graph", "plain", "relations", "team/summary"]),
    ({"base": "%"}, []),
    ({"rank_min": 8}, ["nli-graph", "team/summary"]),
    ({"rank_max": 64}, ["nli-graph", "relations", "team/summary"]),
    ({"rank_min": 8, "rank_max": 15}, []),
    ({"rank_min": -(10**30), "rank_max": 10**30}, ["nli-graph", "relations", "team/summary"]),
    ({"task": "SEQ_2_SEQ_LM"}, ["team/summary"]),
    ({"tag": "production"}, ["relations"]),
    ({"tag": "latest"}, ["nli-graph", "plain", "relations", "team/summary"]),
    ({"topic": "nli"}, ["nli-graph", "relations"]),
    ({"licence": "mit"}, ["nli-graph"]),
    ({"text": "clin note"}, ["team/summary"]),
    ({"text": "***"}, []),
    ({"text": "nli", "topic": "nli", "base": "other", "tag": "production"}, ["relations"]),
]


def test_filters_on_list_count_and_search(store: Store) -> None:
    fill(store)
    for filters, expected in FILTERS:
        assert found(store, **filters) == expected, filters
        assert store.count(Filters(**filters)) == len(expected)
        search = {row.name for row in store.search("n", Filters(**filters))}
        everything = {row.name for row in store.search("n")}
        assert search == everything & set(expected)


def test_the_common_ways_to_a_filter_agree_with_the_rare_ones(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(store)
    monkeypatch.setattr(query, "_PLENTY", 1)
    monkeypatch.setattr(query, "RANKED", 1)
    test_filters = [Filters(**filters) for filters, _ in FILTERS]
    for filters, (_, expected) in zip(test_filters, FILTERS, strict=True):
        assert sorted(row.name for row in store.list(filters)) == expected
        everything = {row.name for row in store.search("n", limit=100)}
        assert {r.name for r in store.search("n", filters)} == everything & set(expected)


def test_a_row_tells_all(store: Store) -> None:
    digest = storekit.add(
        store, "a", 1, card={"topics": ["b", "a"], "language": ["en"], "description": "d"}
    )
    (row,) = store.list()
    assert (row.name, row.digest, row.versions, row.tags) == ("a", digest, 1, {"latest": digest})
    assert (row.method, row.format, row.task) == ("lora", "peft", "TOKEN_CLS")
    assert (row.rank_min, row.rank_max, row.parameters, row.bytes) == (8, 16, 123, 12)
    assert (row.labels, row.variants, row.dtype) == (("O", "SRC", "REL"), (), "F32")
    assert (row.base_name, row.base_structure_root) == ("org/MiniLM", storekit.BASE)
    assert (row.topics, row.language, row.description) == (("b", "a"), ("en",), "d")
    assert row.card == {"topics": ["b", "a"], "language": ["en"], "description": "d"}


def test_pages_follow_each_other(store: Store) -> None:
    for number in range(23):
        storekit.add(store, f"n{number:02}", 1)
    newest_first = [f"n{number:02}" for number in reversed(range(23))]
    for order, expected in (("updated", newest_first), ("name", sorted(newest_first))):
        walked: list[str] = []
        after = None
        while page := store.list(order=order, limit=5, after=after):
            walked += [row.name for row in page]
            after = page[-1].cursor
        assert walked == expected
        assert [row.name for row in store.list(order=order, limit=4, offset=7)] == expected[7:11]
    for bad in ({"order": "size"}, {"limit": -1}, {"offset": -1}, {"after": "x"}):
        with pytest.raises(InvalidOption):
            store.list(**bad)  # type: ignore[arg-type]


def test_search_finds_parts_of_names_and_puts_the_exact_name_first(store: Store) -> None:
    fill(store)
    storekit.add(store, "graph", 9, card={"description": "nothing"})
    storekit.add(store, "graphs-of-graph-graph", 9, card={"description": "graph graph"})
    assert {row.name for row in store.search("nli")} == {"nli-graph", "relations"}
    assert store.search("graph")[0].name == "graph"
    assert [row.name for row in store.search("nli-graph")] == ["nli-graph"]
    assert [row.name for row in store.search("team/summary")] == ["team/summary"]
    assert [row.name for row in store.search("REL SRC minilm seq_2")] == ["team/summary"]
    assert store.search("nli", limit=1)[0].name == "nli-graph"  # a name counts more than a topic
    assert store.search("absent") == store.search("") == store.search("-") == ()


@pytest.mark.parametrize("text", HOSTILE)
def test_hostile_text_never_raises(store: Store, text: str) -> None:
    fill(store)
    store.search(text)
    store.list(Filters(text=text, base=text, topic=text, tag=text, licence=text, method=text))
    store.nearest(text)
    store.names(text)
    assert len(store.names()) == 4


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(text=ANY_TEXT)
def test_any_text_can_be_searched_for(store: Store, text: str) -> None:
    store.search(text, Filters(base=text))
    store.list(Filters(text=text))
    store.nearest(text)


@given(ANY_TEXT)
def test_a_match_expression_is_quoted_words_only(text: str) -> None:
    expression = query.match_expression(text)
    if expression is not None:
        connection = sqlite3.connect(":memory:")
        connection.execute("CREATE VIRTUAL TABLE t USING fts5(a)")
        connection.execute("INSERT INTO t VALUES (?)", (text,))
        connection.execute("SELECT rowid FROM t WHERE t MATCH ?", (expression,)).fetchall()
        connection.close()


def test_misspelt_names_are_found_among_many(store: Store) -> None:
    for name in ("arsenal-ner", "team/nli-graph", "nli-graph", "polite-rewriter", "x1"):
        storekit.add(store, name, 1)
    for number in range(60):
        storekit.add(store, f"run-{number:03}", 1)
    for wrong, right in (
        ("arsenl-ner", "arsenal-ner"),
        ("rasenal-ner", "arsenal-ner"),
        ("xarsenal-ner", "arsenal-ner"),
        ("nli-grahp", "nli-graph"),
        ("polite-rewritter", "polite-rewriter"),
        ("team/nli-grap", "team/nli-graph"),
        ("run-0311", "run-031"),
    ):
        assert right in store.nearest(wrong), wrong
    assert store.nearest("zzzzzz") == ()


def test_facts_of_odd_manifests_are_none_not_errors() -> None:
    odd = {"rank": [], "base": 5, "files": {"a": 1}, "labels": "one", "method": {}, "task": 1}
    facts = index.facts(odd | {"parameters": 2**70, "variants": [1, "x"], "dtype": True})
    assert facts["labels"] == '["one"]'
    assert facts["variants"] == '["x"]'
    assert facts["bytes"] == 0
    rest = facts.keys() - {"labels", "variants", "bytes"}
    assert {facts[key] for key in rest} == {None}


# --- the index is a cache -------------------------------------------------------------------------


def answers(store: Store) -> list[object]:
    asked: list[object] = [store.list(order=order) for order in ("updated", "name")]
    asked += [store.list(Filters(**filters)) for filters, _ in FILTERS]
    asked += [[row.name for row in store.search(text)] for text in ("nli", "graph", "m", "o src")]
    return [*asked, store.nearest("nli-grap"), store.names("n")]


def spoil_rows(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[4096:] = b"\xff" * (len(data) - 4096)
    path.write_bytes(data)


def foreign(path: Path) -> None:
    path.unlink()
    connection = sqlite3.connect(path)
    connection.execute("CREATE TABLE names (id)")
    connection.commit()
    connection.close()


def older(path: Path) -> None:
    connection = sqlite3.connect(path)
    connection.execute("PRAGMA user_version = 0")
    connection.close()


def without_a_table(path: Path) -> None:
    connection = sqlite3.connect(path)
    connection.execute("DROP TABLE topics")
    connection.close()


@pytest.mark.parametrize(
    ("spoil", "noted"),
    [
        (Path.unlink, False),
        (lambda path: path.write_bytes(b""), True),
        (lambda path: path.write_bytes(b"no database, " * 999), True),
        (spoil_rows, True),
        (foreign, True),
        (older, True),
        (without_a_table, True),
    ],
)
def test_a_bad_index_is_set_aside_and_made_again(
    tmp_path: Path, notes: list[str], spoil: Any, noted: bool
) -> None:
    with Store(tmp_path / "home") as store:
        fill(store)
        storekit.add(store, "gone", 5)
        store.remove_name("gone")
        expected = answers(store)
        store.reindex()
        assert answers(store) == expected
    sqlite3.connect(tmp_path / "home" / "index.db").close()
    for suffix in ("-wal", "-shm"):
        checked_in(tmp_path / "home" / "index.db", suffix)
    spoil(tmp_path / "home" / "index.db")
    with Store(tmp_path / "home", on_note=notes.append) as store:
        assert answers(store) == expected
        storekit.add(store, "later", 6)
        assert "later" in store.names()
    assert [("is kept as index.db.aside-" in note) for note in notes] == [True] * noted


def checked_in(path: Path, suffix: str) -> None:
    connection = sqlite3.connect(path)
    connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    connection.close()
    path.with_name(path.name + suffix).unlink(missing_ok=True)


def test_a_log_that_cannot_be_read_is_left_out_and_noted(store: Store, notes: list[str]) -> None:
    fill(store)
    (store.home / "refs" / "plain.jsonl").write_bytes(b"garbage\ngarbage\n")
    assert store.reindex() == 3
    assert notes[-1].startswith("plain is left out of the index: line 1 of ")


def test_an_index_that_could_not_be_written_catches_up_at_the_next_opening(
    store: Store, notes: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def busy(log: object) -> None:
        raise sqlite3.OperationalError("database is locked")

    storekit.add(store, "a", 1)
    with monkeypatch.context() as patched:
        patched.setattr(store._index, "update", busy)
        for number in range(70):  # past the size at which the intents are emptied
            storekit.add(store, f"b{number}", number)
    assert "the index is behind (database is locked)" in notes[0]
    assert store.names() == ("a",)
    with Store(store.home) as again:
        assert len(again.names()) == 71
        storekit.add(again, "c", 1)
        assert (store.home / "intents.jsonl").stat().st_size == 0


def test_connections_of_threads_that_ended_are_closed(store: Store) -> None:
    storekit.add(store, "a", 1)
    seen: list[tuple[str, ...]] = []
    for _ in range(5):
        thread = threading.Thread(target=lambda: seen.append(store.names()))
        thread.start()
        thread.join()
    assert seen == [("a",)] * 5
    assert len(store._index._kept) == 2


def test_two_stores_see_each_others_changes_and_a_new_index(tmp_path: Path) -> None:
    with Store(tmp_path / "home") as one, Store(tmp_path / "home") as two:
        storekit.add(one, "a", 1)
        assert two.names() == ("a",)
        (tmp_path / "home" / "index.db").unlink()
        storekit.add(two, "b", 2)
        assert one.names() == two.names() == ("a", "b")


# --- where homes lie ------------------------------------------------------------------------------


def test_network_filesystems_are_recognised(tmp_path: Path) -> None:
    mounts = tmp_path / "mounts"
    share = tmp_path / "with space" / "share"
    share.mkdir(parents=True)
    spelt = str(tmp_path / "with space").replace(" ", "\\040")
    mounts.write_text(f"root / ext4 rw 0 0\nhost:/x {spelt} nfs4 rw 0 0\nbad\n")
    assert home.network_filesystem(share, mounts) == "nfs4"
    assert home.network_filesystem(tmp_path, mounts) is None
    assert home.network_filesystem(share, tmp_path / "absent") is None


def test_the_default_home(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("ADAPTERHUB_HOME", str(tmp_path / "x"))
    assert Store.default_home() == tmp_path / "x"
    monkeypatch.delenv("ADAPTERHUB_HOME")
    assert Store.default_home().name == "adapterhub"
