from __future__ import annotations

import asyncio
import os
from dataclasses import replace
from pathlib import Path

import pytest
import wire
import xetkit
from transferkit import Place
from wire import Wire

from adapterhub.hub.server import xet
from adapterhub.hub.xet import ingest

DATA = os.urandom(500_000)
OTHER = "ns/other"


@pytest.fixture(scope="module", autouse=True)
def other(place: Place) -> None:
    assert place.wire.create(OTHER).status == 200


def push_xorb(to: Wire, packed: xetkit.Packed, body: bytes | None = None) -> wire.Answer:
    data = packed.xorb if body is None else body
    return to.ask("POST", f"/v1/xorbs/default/{packed.name}", data)


def folders(place: Place) -> list[Path]:
    return list((place.service.registry.store.home / "hub/xet").glob("*/*"))


def test_a_token_names_its_address_and_ends(place: Place) -> None:
    answer = place.wire.ask("GET", f"/api/models/{place.repo}/xet-write-token/main")
    said = answer.json
    key = place.repository.key
    assert said["casUrl"].startswith(f"{place.wire.url}/xet/{key}/")
    assert answer.headers["x-xet-cas-url"] == said["casUrl"]
    assert answer.headers["x-xet-access-token"] == said["accessToken"]
    assert answer.headers["x-xet-token-expiration"] == str(said["exp"])
    now = place.service.transfers.signer.now()
    assert 3590 < said["exp"] - now <= 3600
    again = place.wire.ask("GET", f"/api/models/{place.repo}/xet-write-token/main?create_pr=1")
    assert again.json["casUrl"] == said["casUrl"]


def test_a_file_goes_up_and_is_the_repositorys(place: Place) -> None:
    packed, to = xetkit.packed(DATA), place.wire.xet(place.repo)
    assert push_xorb(to, packed).json == {"was_inserted": True}
    assert push_xorb(to, packed).json == {"was_inserted": False}
    assert not place.has(wire.oid(DATA))
    for _ in range(2):
        assert to.ask("POST", "/v1/shards", packed.shard()).json == {"result": 1}
    assert place.has(wire.oid(DATA))
    assert place.wire.commit(place.repo, wire.header(), wire.lfs("m.bin", DATA)).status == 200
    assert place.wire.file(place.repo, "m.bin").body == DATA
    assert place.wire.commit(OTHER, wire.header(), wire.lfs("m.bin", DATA)).status == 400
    assert place.left_behind() == []


def test_what_clients_take_for_no(place: Place) -> None:
    """Global deduplication, grants, telemetry, shards of version 2, tokens to read."""
    to = place.wire.xet(place.repo)
    for method, path in (
        ("GET", f"/v1/chunks/default/{'a' * 64}"),
        ("GET", f"/v1/chunks/default-merkledb/{'a' * 64}"),
        ("POST", f"/v1/xorb-grants/default/{'a' * 64}"),
        ("POST", "/v2/shards"),
        ("POST", "/v1/telemetry"),
    ):
        body = b"{}" if method == "POST" else None
        assert to.ask(method, path, body).status == 404
    assert place.wire.ask("POST", "/v1/telemetry", b"{}").status == 404
    read = f"/api/models/{place.repo}/xet-read-token/main"
    assert place.wire.ask("GET", read).status == 404


def test_tokens_open_one_address_only(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    packed = xetkit.packed(os.urandom(70_000))
    ours, theirs = place.wire.xet(place.repo), place.wire.xet(OTHER)
    epoch = ours.url.rsplit("/", 1)[1]
    elsewhere = ours.url.replace(epoch, f"{int(epoch.split('-')[0]) - 1}-00000000")
    monkeypatch.setattr(xet, "SECONDS", -1.0)
    late = place.wire.xet(place.repo)
    for url, token in (
        (ours.url, ""),
        (ours.url, "nonsense"),
        (ours.url, place.wire.token),
        (ours.url, theirs.token),
        (ours.url, late.token),
        (theirs.url, ours.token),
        (elsewhere, ours.token),
    ):
        for path in (f"/v1/xorbs/default/{packed.name}", "/v1/shards"):
            assert Wire(url, token).ask("POST", path, packed.xorb).status == 401, (url, token)
    assert push_xorb(ours, packed).status == 200


def test_tokens_are_for_who_may_write(place: Place) -> None:
    hub = place.service.hub
    _, reader = hub.tokens.create("reader", "read")
    path = f"/api/models/{place.repo}/xet-write-token/main"
    assert Wire(place.wire.url, reader).ask("GET", path).status == 403
    assert place.public.ask("GET", path).status == 401


def test_another_repositorys_xorb(place: Place) -> None:
    packed = xetkit.packed(os.urandom(70_000))
    push_xorb(place.wire.xet(OTHER), packed)
    answer = place.wire.xet(place.repo).ask("POST", "/v1/shards", packed.shard())
    assert (answer.status, "was not uploaded" in answer.json["error"]) == (422, True)
    assert not place.has(wire.oid(packed.data))


def test_xorbs_that_are_wrong_cut_or_too_large(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    packed = xetkit.packed(os.urandom(200_000))
    to = place.wire.xet(place.repo)
    broken = packed.xorb[:1000] + bytes([packed.xorb[1000] ^ 1]) + packed.xorb[1001:]
    for body in (b"", broken, packed.xorb[:-1], packed.xorb + b"x"):
        assert push_xorb(to, packed, body).status == 422
    assert to.ask("POST", "/v1/xorbs/default/nonsense", packed.xorb).status == 422
    to.cut("POST", f"/v1/xorbs/default/{packed.name}", packed.xorb, 100_000)
    monkeypatch.setattr(xet, "MAX_XORB_BYTES", 1000)
    assert push_xorb(to, packed).status == 413
    monkeypatch.undo()
    assert to.ask("POST", "/v1/shards", packed.shard()[:-60]).status == 422
    lying = packed.shard(sha256=bytes(32))
    assert push_xorb(place.wire.xet(place.repo), packed).status == 200
    assert place.wire.xet(place.repo).ask("POST", "/v1/shards", lying).status == 422
    assert place.left_behind() == []
    names = [each.name for folder in folders(place) for each in folder.iterdir()]
    assert not [name for name in names if len(name) < 64 and name != "over" and "file" not in name]


def test_a_shard_that_is_too_large(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(xet, "MAX_SHARD_BYTES", 100)
    packed = xetkit.packed(os.urandom(70_000))
    assert place.wire.xet(place.repo).ask("POST", "/v1/shards", packed.shard()).status == 413


def test_xorbs_go_with_their_repository(place: Place) -> None:
    place.wire.create("ns/gone")
    to = place.wire.xet("ns/gone")
    packed = xetkit.packed(os.urandom(70_000))
    assert push_xorb(to, packed).status == 200
    before = len(folders(place))
    body = {"name": "gone", "organization": "ns"}
    assert place.wire.send("DELETE", "/api/repos/delete", body).status == 200
    assert len(folders(place)) == before - 1
    assert push_xorb(to, packed).status == 404


def test_a_file_without_room_is_not_rebuilt(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """A shard of 500 bytes can stand for 200 GiB; the limit is asked before, not behind."""
    packed, to = xetkit.packed(os.urandom(200_000)), place.wire.xet(place.repo)
    assert push_xorb(to, packed).status == 200
    stored = place.service.hub.repositories.again(place.repository).stored
    limits = replace(place.service.hub.limits, repository_size=stored + 199_999)
    monkeypatch.setattr(place.service.hub.contents, "_limits", limits)
    monkeypatch.setattr(ingest, "_rebuild", None)
    answer = to.ask("POST", "/v1/shards", packed.shard())
    assert (answer.status, answer.json["code"]) == (413, "too-large")
    monkeypatch.undo()
    assert to.ask("POST", "/v1/shards", packed.shard()).status == 200
    limits = replace(limits, repository_size=1)
    monkeypatch.setattr(place.service.hub.contents, "_limits", limits)
    assert to.ask("POST", "/v1/shards", packed.shard()).status == 200, "it is here already"


def test_one_namespace_does_not_take_all_the_turns(place: Place) -> None:
    async def order() -> list[str]:
        entered: list[str] = []
        leave = asyncio.Event()

        async def rebuild(namespace: str) -> None:
            async with place.service.transfers.rebuilding(namespace):
                entered.append(namespace)
                await leave.wait()

        tasks = [asyncio.create_task(rebuild(each)) for each in ("a", "a", "a", "b")]
        await asyncio.sleep(0.05)
        seen = list(entered)
        leave.set()
        await asyncio.gather(*tasks)
        return seen

    assert asyncio.run(order()) == ["a", "b"]
