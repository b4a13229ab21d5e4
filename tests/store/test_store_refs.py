from __future__ import annotations

import json
from pathlib import Path

import pytest
import storekit

from adapterhub.errors import (
    AlreadyExists,
    IntegrityError,
    InvalidOption,
    NotFound,
    StoreError,
)
from adapterhub.store import Store, refs


def test_add_moves_latest_and_adding_the_same_again_changes_nothing(store: Store) -> None:
    one = storekit.add(store, "a", 1)
    with store.writing():
        two = storekit.put(store, 2)
        done = store.add_version("a", two, tags=["prod"])
    assert (done.status, done.digest, done.previous) == ("added", two, one)
    assert store.state("a").tags == {"latest": two, "prod": two}
    before = len(store.history("a"))
    again = store.add_version("a", two, tags=["prod"])
    assert (again.status, again.events) == ("unchanged", ())
    assert len(store.history("a")) == before


def test_history_says_who_moved_a_tag_from_where_to_where(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ADAPTERHUB_USER", "ada@lovelace")
    one = storekit.add(store, "a", 1, origin={"path": "runs/1"})
    two = storekit.add(store, "a", 2)
    events = store.history("a")
    assert [dict(e.fields) for e in events] == [
        {"tag": "latest", "from": None, "to": one, "op": "add", "origin": {"path": "runs/1"}},
        {"tag": "latest", "from": one, "to": two, "op": "add", "origin": None},
    ]
    assert {e.who for e in events} == {"ada@lovelace"}
    assert events[0].when < events[1].when
    lines = (store.home / "refs" / "a.jsonl").read_text().splitlines()
    assert [json.loads(line)["v"] for line in lines] == [1, 1]


def test_expect_new_refuses_a_name_that_is_taken(store: Store) -> None:
    digest = storekit.add(store, "a", 1)
    with pytest.raises(AlreadyExists, match="the name a is taken, by sha256:"):
        store.add_version("a", digest, expect_new=True)


def test_an_add_of_what_is_not_stored_is_refused(store: Store) -> None:
    with pytest.raises(IntegrityError, match=r"manifest sha256:0+ is missing"):
        store.add_version("a", "sha256:" + "0" * 64)
    with pytest.raises(StoreError, match=r"'\.\./\.\./x' is not a sha256 digest"):
        store.add_version("a", "../../x")
    document = storekit.document("sha256:" + "1" * 64, 5)
    with pytest.raises(IntegrityError, match=r"blob sha256:1+ is missing"):
        store.add_version("a", store.put_manifest(document))
    assert store.names() == ()


def test_tags_move_only_from_where_they_are_expected(store: Store) -> None:
    one = storekit.add(store, "a", 1)
    two = storekit.add(store, "a", 2)
    assert store.tag("a", one, "prod").previous is None
    with pytest.raises(AlreadyExists, match=f"a:prod points at {one}, expected {two}"):
        store.tag("a", two, "prod", expect=two)
    assert store.tag("a", two, "prod", expect=one).status == "tagged"
    assert store.untag("a", "prod").previous == two
    with pytest.raises(InvalidOption, match="latest cannot be taken away"):
        store.untag("a", "latest")
    with pytest.raises(NotFound, match="a has no tag prod; its tags are latest"):
        store.untag("a", "prod")


def test_rollback_goes_to_the_previous_distinct_digest(store: Store) -> None:
    one = storekit.add(store, "a", 1)
    two = storekit.add(store, "a", 2)
    for digest in (one, two, one):
        store.tag("a", digest, "prod")
    assert store.rollback("a", "prod").digest == two
    assert store.rollback("a", "prod").digest == one
    assert store.rollback("a", "latest", to=two[:15]).status == "unchanged"
    assert store.rollback("a", "latest", to=one[7:15]).digest == one
    with pytest.raises(NotFound, match="a:new has nothing to go back to"):
        store.rollback("a", "new")
    with pytest.raises(NotFound, match="no version that begins with ffff"):
        store.rollback("a", "prod", to="ffff")


def test_a_removed_version_can_come_back(store: Store) -> None:
    one = storekit.add(store, "a", 1)
    two = storekit.add(store, "a", 2, tags=["prod"])
    done = store.remove_version("a", two)
    assert (done.digest, [e.kind for e in done.events]) == (one, ["tag", "tag", "remove"])
    assert store.state("a").tags == {"latest": one}
    with pytest.raises(NotFound, match=f"a@{two} was removed on 20") as caught:
        store.resolve(f"a@{two}")
    assert caught.value.remedy.startswith("adapterhub rollback a latest --to sha256:")
    assert store.restorable("a") == (two,)
    assert store.rollback("a", "prod", to=two).digest == two
    assert store.state("a").tags == {"latest": one, "prod": two}
    assert store.state("a").removed == {}


def test_a_removed_name_can_come_back_as_it_was(store: Store) -> None:
    storekit.add(store, "a", 1)
    storekit.add(store, "a", 2, tags=["prod"], card={"topics": ["nli"]})
    before = store.state("a")
    store.remove_name("a")
    assert not store.exists("a")
    for verb in (store.resolve, store.remove_name, store.edit_card):
        with pytest.raises(NotFound, match="the name a was removed on 20") as caught:
            verb("a")
        assert "adapterhub rollback a latest restores it" in caught.value.remedy
    assert store.rollback("a", "latest").status == "restored"
    after = store.state("a")
    assert (after.tags, after.versions, after.card) == (before.tags, before.versions, before.card)


def test_a_removed_name_that_is_added_anew_starts_afresh(store: Store) -> None:
    one = storekit.add(store, "a", 1, tags=["prod"], card={"description": "old"})
    store.remove_name("a")
    two = storekit.add(store, "a", 2, expect_new=True)
    state = store.state("a")
    assert (state.tags, list(state.versions), state.card) == ({"latest": two}, [two], {})
    assert list(state.removed) == [one]


def test_removing_the_only_version_removes_the_name(store: Store) -> None:
    one = storekit.add(store, "a", 1)
    store.remove_version("a", one)
    assert store.names() == ()
    assert store.rollback("a", "latest").digest == one


def test_rename_takes_the_history_along(store: Store) -> None:
    one = storekit.add(store, "a", 1, tags=["prod"])
    storekit.add(store, "taken", 2)
    assert store.rename("a", "team/b").status == "renamed"
    assert store.names() == ("taken", "team/b")
    assert [e.kind for e in store.history("team/b")] == ["tag", "tag", "rename"]
    assert store.resolve("team/b:prod") == ("team/b", one)
    with pytest.raises(NotFound, match="no adapter is called a"):
        store.history("a")
    with pytest.raises(AlreadyExists, match="the name taken is taken"):
        store.rename("team/b", "taken")
    store.remove_name("taken")
    with pytest.raises(AlreadyExists, match="taken was removed, and its history is kept"):
        store.rename("team/b", "taken")
    with pytest.raises(InvalidOption, match="team/b has that name already"):
        store.rename("team/b", "team/b")
    storekit.add(store, "a", 3)
    store.rename("team/b", "c")
    assert store.names() == ("a", "c")


def test_refs_resolve_by_tag_and_by_a_prefix_that_is_unique(store: Store) -> None:
    digests = [storekit.add(store, "a", number) for number in range(40)]
    last = digests[-1]
    assert store.resolve("a") == store.resolve("a:latest") == ("a", last)
    assert store.resolve(f"a@{last[7:17]}") == ("a", last)
    with pytest.raises(NotFound, match="a has no tag prod; its tags are latest") as caught:
        store.resolve("a:prod")
    assert caught.value.remedy == f"adapterhub tag a@{last[:19]} prod sets it"
    state = refs.State("a", {"latest": "sha256:abcd1"}, {"sha256:abcd1": "", "sha256:abcd2": ""})
    from adapterhub.store import parse_ref, verbs

    with pytest.raises(NotFound, match="abcd is the beginning of 2 versions of a") as caught:
        verbs.find(state, parse_ref("a@abcd"))
    assert caught.value.details == ("a@sha256:abcd1", "a@sha256:abcd2")


def test_an_unknown_name_brings_the_nearest_ones(store: Store) -> None:
    for name in ("nli-graph", "nli-grape", "summaries"):
        storekit.add(store, name, 1)
    for verb in (store.resolve, store.remove_name, store.history):
        with pytest.raises(NotFound, match="no adapter is called nli-grahp") as caught:
            verb("nli-grahp")
        assert "did you mean nli-graph or nli-grape?" in caught.value.remedy


def test_cards_are_edited_with_history_and_checked(store: Store) -> None:
    storekit.add(store, "a", 1)
    store.edit_card("a", {"topics": ["nli"], "metrics": {"f1": 0.9}, "notes": [1, None]})
    store.edit_card("a", {"description": "d"}, unset=["notes", "never there"])
    card = store.state("a").card
    assert card == {"topics": ["nli"], "metrics": {"f1": 0.9}, "description": "d"}
    assert store.edit_card("a", {"description": "d"}).status == "unchanged"
    assert store.history("a")[-1].fields == {"set": {"description": "d"}, "unset": ["notes"]}
    for field, value, text in (
        ("topics", "nli", "the card's topics is str, expected a list of texts"),
        ("topics", [1], "the card's topics is list, expected a list of texts"),
        ("description", 5, "the card's description is int, expected text"),
        ("notes", float("nan"), "cannot be recorded as JSON"),
        ("notes", "\ud800", "cannot be recorded as JSON"),
        ("notes", object(), "cannot be recorded as JSON"),
        ("notes", "x" * 2**21, "at most 1048576 are allowed"),
    ):
        with pytest.raises(InvalidOption, match=text):
            store.edit_card("a", {field: value})
    assert store.state("a").card == card


@pytest.mark.parametrize("torn", [b'{"v":1,"id":"x"', b"garbage\n", b'{"v":1}', b"\0\0\0\n"])
def test_a_torn_last_line_is_ignored_and_cut_by_the_next_writer(store: Store, torn: bytes) -> None:
    one = storekit.add(store, "a", 1)
    log = store.home / "refs" / "a.jsonl"
    sound = log.read_bytes()
    log.write_bytes(sound + torn)
    assert store.resolve("a") == ("a", one)
    two = storekit.add(store, "a", 2)
    assert log.read_bytes().startswith(sound)
    assert torn not in log.read_bytes()
    assert [e.fields["to"] for e in store.history("a")] == [one, two]


def test_a_change_of_several_lines_is_seen_whole_or_not_at_all(store: Store) -> None:
    one = storekit.add(store, "a", 1)
    storekit.add(store, "a", 2, tags=["prod"], card={"description": "d"})
    log = store.home / "refs" / "a.jsonl"
    lines = log.read_bytes().splitlines(keepends=True)
    for count in (2, 3):
        log.write_bytes(b"".join(lines[:count]))
        assert store.state("a").tags == {"latest": one}


@pytest.mark.parametrize(
    ("line", "kind", "text"),
    [
        (b"garbage\n", IntegrityError, r"line 1 of .*/refs/a.jsonl is damaged"),
        (b'{"v":9,"event":"tag"}\n', StoreError, "line 1 of .* does not know"),
        (b'{"v":1,"event":"tag"}\n', IntegrityError, "line 1 of .* lacks what its event needs"),
        (
            b'{"v":1,"event":"tag","id":"i","when":"w","who":"o","tag":[],"to":"d","op":"x"}\n',
            IntegrityError,
            "a field that should be text is not",
        ),
    ],
)
def test_damage_in_the_middle_names_line_and_file(
    store: Store, line: bytes, kind: type[Exception], text: str
) -> None:
    storekit.add(store, "a", 1)
    log = store.home / "refs" / "a.jsonl"
    log.write_bytes(line + log.read_bytes())
    with pytest.raises(kind, match=text):
        store.resolve("a")


def test_a_home_of_a_later_version_is_refused(tmp_path: Path) -> None:
    Store(tmp_path / "home").close()
    (tmp_path / "home" / "store.json").write_text('{"store": 2}')
    with pytest.raises(StoreError, match="has format 2; this version reads 1"):
        Store(tmp_path / "home")
    (tmp_path / "home" / "store.json").write_text("[]")
    with pytest.raises(StoreError, match=r"store.json is damaged"):
        Store(tmp_path / "home")
