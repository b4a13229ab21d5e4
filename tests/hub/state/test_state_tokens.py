"""Tokens, and what they open."""

from __future__ import annotations

import re
import sqlite3
import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import replace

import pytest
import statekit

from adapterhub.errors import NotFound
from adapterhub.hub.state.errors import (
    Forbidden,
    GatedRepo,
    InvalidRequest,
    RepoNotFound,
    Unauthorized,
)
from adapterhub.hub.state.model import ANONYMOUS, Caller
from adapterhub.hub.state.names import parse_id
from adapterhub.hub.state.repositories import Repository
from adapterhub.hub.state.state import Hub
from adapterhub.store import Store


def test_a_token_is_shown_once_and_kept_as_a_hash(hub: Hub, store: Store) -> None:
    token, secret = hub.tokens.create("bob", "write", ["ns", "team"], days=2)
    assert re.fullmatch("ahub_[0-9a-f]{60}", secret)
    assert secret.startswith(f"ahub_{token.id}") and secret not in repr(token)
    assert hub.tokens.caller(secret) == Caller("bob", token)
    assert (token.role, token.namespaces, token.expires) == (
        "write",
        ("ns", "team"),
        token.created + 172800,
    )
    hub.close()
    kept = b"".join(path.read_bytes() for path in store.home.glob("hub.db*"))
    assert secret[17:].encode() not in kept and bytes.fromhex(secret[17:]) not in kept
    assert {path.stat().st_mode & 0o777 for path in store.home.glob("hub.db*")} == {0o600}


def test_two_tokens_share_nothing(hub: Hub) -> None:
    secrets = {hub.tokens.create("bob")[1] for _ in range(50)}
    assert len({secret[17:] for secret in secrets}) == 50
    assert [token.label for token in hub.tokens.list()] == ["bob"] * 50


@pytest.mark.parametrize(
    "spoil",
    [
        lambda s: s[:-1],
        lambda s: s + "0",
        lambda s: s.upper(),
        lambda s: s[:-1] + ("0" if s[-1] != "0" else "1"),
        lambda s: "ahub_" + "0" * 60,
        lambda s: s[:5] + "0" * 12 + s[17:],
        lambda s: " " + s,
        lambda s: s + "\n",
        lambda s: "hf_abc",
        lambda s: "\ud800",
        lambda s: "٠" * 65,
        lambda s: "x" * 10**6,
    ],
)
def test_a_wrong_token_is_not_nobody(hub: Hub, spoil: Callable[[str], str]) -> None:
    _, secret = hub.tokens.create("bob")
    with pytest.raises(Unauthorized, match="this token is not known here") as caught:
        hub.tokens.caller(spoil(secret))
    assert caught.value.status == 401 and secret[17:] not in str(caught.value)
    assert hub.tokens.caller(None) == hub.tokens.caller("") == ANONYMOUS


def test_tokens_end(hub: Hub, clock: statekit.Clock) -> None:
    token, secret = hub.tokens.create("bob", days=1)
    other, lasting = hub.tokens.create("eve")
    clock.seconds += 86399
    hub.tokens.caller(secret)
    clock.seconds += 1
    with pytest.raises(Unauthorized, match="this token has expired"):
        hub.tokens.caller(secret)
    hub.tokens.caller(lasting)
    revoked = hub.tokens.revoke(other.id)
    clock.seconds += 5
    assert hub.tokens.revoke(other.id) == revoked
    with pytest.raises(Unauthorized, match="this token has been revoked"):
        hub.tokens.caller(lasting)
    assert [each.id for each in hub.tokens.list()] == sorted([token.id, other.id])
    for id in ("gone", "", "\ud800", "é"):
        with pytest.raises(NotFound, match="no token"):
            hub.tokens.revoke(id)


def test_the_last_use_is_written_once_an_hour(hub: Hub, clock: statekit.Clock) -> None:
    token, secret = hub.tokens.create("bob")
    seen = []
    for seconds in (0, 10, 3599, 3600, 100):
        clock.seconds += seconds
        hub.tokens.caller(secret)
        seen.append(hub.tokens.get(token.id).used)
    start = 1_700_000_000
    assert seen == [start, start, start + 3609, start + 7209, start + 7209]


@pytest.mark.parametrize(
    ("label", "role", "namespaces", "days"),
    [
        ("", "read", ["*"], None),
        ("a b", "read", ["*"], None),
        ("a\n", "read", ["*"], None),
        ("bob", "admin", ["*"], None),
        ("bob", "read", [], None),
        ("bob", "read", ["a/b"], None),
        ("bob", "read", ["a b"], None),
        ("bob", "read", [""], None),
        ("bob", "read", ["*"], 0),
        ("bob", "read", ["*"], -1),
        ("bob", "read", ["*"], float("nan")),
        ("bob", "read", ["*"], float("inf")),
    ],
)
def test_tokens_that_make_no_sense(
    hub: Hub, label: str, role: str, namespaces: list[str], days: float | None
) -> None:
    with pytest.raises(InvalidRequest):
        hub.tokens.create(label, role, namespaces, days=days)
    assert hub.tokens.list() == ()


# --- access

WHO = ("nobody", "reader", "stranger", "writer", "owner of all", "reader of all")


@pytest.fixture
def callers(hub: Hub) -> dict[str, Caller]:
    made = {
        "reader": hub.tokens.create("r", "read", ["ns"]),
        "stranger": hub.tokens.create("s", "write", ["else"]),
        "writer": hub.tokens.create("w", "write", ["ns"]),
        "owner of all": hub.tokens.create("o", "write"),
        "reader of all": hub.tokens.create("a", "read"),
    }
    found = {who: hub.tokens.caller(secret) for who, (_, secret) in made.items()}
    token = found["stranger"].token
    assert token is not None
    found["stranger"] = Caller("s", replace(token, namespaces=("else", "NS")))  # of a former day
    return {"nobody": ANONYMOUS, **found}


def tried(action: Callable[[], object]) -> str:
    try:
        action()
    except (RepoNotFound, Unauthorized, GatedRepo, Forbidden) as error:
        return type(error).__name__
    return "yes"


TABLE = {
    # who: (see public, read gated, see private, write public, write private, create, bare id)
    "nobody": "yes GatedRepo RepoNotFound Unauthorized RepoNotFound Unauthorized Unauthorized",
    "reader": "yes yes yes Forbidden Forbidden Forbidden Forbidden",
    "stranger": "yes GatedRepo RepoNotFound Forbidden RepoNotFound Forbidden Forbidden",
    "writer": "yes yes yes yes yes yes Forbidden",
    "owner of all": "yes yes yes yes yes yes yes",
    "reader of all": "yes yes yes Forbidden Forbidden Forbidden Forbidden",
}


@pytest.mark.parametrize("who", WHO)
def test_who_may_do_what(hub: Hub, callers: dict[str, Caller], who: str) -> None:
    public = hub.create(statekit.other("ns/public"), private=False).id
    gated = hub.create(statekit.other("ns/gated"), private=False, gated="manual").id
    private = hub.create(statekit.other("ns/private")).id
    access, caller = hub.access, callers[who]
    assert TABLE[who].split() == [
        tried(lambda: access.see(caller, public)),
        tried(lambda: access.read(caller, gated)),
        tried(lambda: access.see(caller, private)),
        tried(lambda: access.write(caller, public)),
        tried(lambda: access.write(caller, private)),
        tried(lambda: access.create(caller, statekit.other("ns/new"))),
        tried(lambda: access.create(caller, statekit.other("bare"))),
    ]
    assert tried(lambda: access.see(caller, gated)) == "yes"
    shown = {str(each.id) for each in access.list(caller)}
    sees = TABLE[who].split()[2] == "yes"
    assert shown == {"ns/public", "ns/gated", *(["ns/private"] if sees else [])}


def test_a_private_bare_id_needs_all_namespaces(hub: Hub, callers: dict[str, Caller]) -> None:
    bare = hub.create(statekit.other("bare")).id
    allowed = [who for who in WHO if tried(lambda: hub.access.see(callers[who], bare)) == "yes"]  # noqa: B023
    assert allowed == ["owner of all", "reader of all"]


def test_a_hidden_repository_looks_like_none(hub: Hub, repository: Repository) -> None:
    def said(id: str) -> str:
        with pytest.raises(RepoNotFound) as caught:
            hub.access.see(ANONYMOUS, statekit.other(id))
        return str(caught.value).replace(id, "ID")

    assert said("ns/name") == said("ns/gone")


def test_without_public_read_nobody_sees_anything(store: Store) -> None:
    with Hub(store, public_read=False) as hub:
        public = hub.create(statekit.ID, private=False)
        _, secret = hub.tokens.create("bob", "read", ["other"])
        with pytest.raises(RepoNotFound):
            hub.access.read(ANONYMOUS, public.id)
        assert hub.access.list(ANONYMOUS) == ()
        assert hub.access.read(hub.tokens.caller(secret), public.id) == public
        assert len(hub.access.list(hub.tokens.caller(secret))) == 1


def test_who_asks_does_not_wait_for_who_writes(hub: Hub) -> None:
    token, secret = hub.tokens.create("bob")
    with closing(sqlite3.connect(hub.store.home / "hub.db", isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        began = time.monotonic()
        assert hub.tokens.caller(secret).token == token
        assert time.monotonic() - began < 30
        other.execute("ROLLBACK")
    assert hub.tokens.get(token.id).used is None
    hub.tokens.caller(secret)
    assert hub.tokens.get(token.id).used is not None


def test_a_namespace_has_one_spelling(hub: Hub) -> None:
    hub.tokens.create("ann", "write", ("Acme",))
    with pytest.raises(InvalidRequest, match="namespace acme is Acme in another spelling"):
        hub.tokens.create("bob", "read", ("acme", "other"))
    hub.tokens.create("bob", "read", ("Acme", "*"))
    for token in hub.tokens.list():
        hub.tokens.revoke(token.id)
    hub.tokens.create("eve", "read", ("acme",))
    hub.create(parse_id("Corp/x"))
    with pytest.raises(InvalidRequest, match="corp is Corp"):
        hub.tokens.create("bob", "write", ("corp",))
