from __future__ import annotations

import hashlib
import http.client
import json
import os
import random
import socket
import threading
import time
from typing import Any
from urllib.parse import urlsplit

import pytest
import wire
from transferkit import Place
from wire import Answer, Wire

from adapterhub.hub.server import bodies, lfs, parts
from adapterhub.hub.server.parts import Upload


def fresh(size: int = 300_000) -> bytes:
    return os.urandom(size)


def batch(place: Place, *contents: bytes, **more: Any) -> Answer:
    objects = [{"oid": wire.oid(each), "size": len(each)} for each in contents]
    document = {"operation": "upload", "transfers": ["basic", "multipart"], "objects": objects}
    path = f"/{place.repo}.git/info/lfs/objects/batch"
    return place.wire.send("POST", path, document | more)


def put(place: Place, data: bytes) -> Answer:
    return place.public.ask("PUT", place.wire.upload_href(place.repo, data), data)


def verify(place: Place, data: bytes, size: int | None = None) -> Answer:
    document = {"oid": wire.oid(data), "size": len(data) if size is None else size}
    return place.wire.send("POST", f"/{place.repo}.git/info/lfs/verify", document)


# --- basic


def test_a_file_goes_up_and_is_not_asked_for_again(place: Place) -> None:
    data = fresh()
    answer = batch(place, data)
    assert answer.headers["content-type"] == "application/vnd.git-lfs+json"
    assert answer.json["transfer"] == "basic"
    (item,) = answer.json["objects"]
    assert item["actions"]["verify"]["href"].endswith(f"/{place.repo}.git/info/lfs/verify")
    assert verify(place, data).status == 400
    assert put(place, data).status == 200
    assert verify(place, data).status == 200
    assert verify(place, data, len(data) + 1).status == 400
    (item,) = batch(place, data).json["objects"]
    assert item == {"oid": wire.oid(data), "size": len(data)}


def test_an_empty_file(place: Place) -> None:
    (item,) = batch(place, b"", transfers=["multipart"]).json["objects"]
    assert "header" not in item["actions"]["upload"]
    assert place.public.ask("PUT", item["actions"]["upload"]["href"], b"").status == 200
    assert place.has(wire.oid(b""))


def test_what_is_larger_than_a_piece_arrives_whole(place: Place) -> None:
    data = fresh(3 * bodies.PIECE + 12_345)
    assert put(place, data).status == 200
    path = place.service.registry.store.blob_path(f"sha256:{wire.oid(data)}")
    assert path.read_bytes() == data


def test_a_body_in_chunks(place: Place) -> None:
    """Without a Content-Length: too short, too long, right."""
    data = fresh(100_000)
    for body, status in ((data[:-1], 400), (data + b"x", 413), (data, 200)):
        parts_of = urlsplit(place.wire.upload_href(place.repo, data))
        pieces = (body[at : at + 7000] for at in range(0, len(body), 7000))
        connection = http.client.HTTPConnection(parts_of.netloc, timeout=30)
        target = f"{parts_of.path}?{parts_of.query}"
        connection.request("PUT", target, pieces, encode_chunked=True)
        assert connection.getresponse().status == status
        connection.close()
    assert place.left_behind() == []


def test_nothing_stays_of_what_is_wrong_or_cut(place: Place) -> None:
    data = fresh()
    href = place.wire.upload_href(place.repo, data)
    wrong = bytes(len(data))
    assert place.public.ask("PUT", href, wrong).status == 422
    assert "hash to" in place.public.ask("PUT", href, wrong).json["error"]
    assert place.public.ask("PUT", href, data[:-1]).status == 400
    assert place.public.ask("PUT", href, data + b"x").status == 400
    for keep in (0, 1, len(data) // 2, len(data) - 1):
        place.public.cut("PUT", href, data, keep)
    assert place.left_behind() == []
    assert not place.has(wire.oid(data))
    assert not place.service.registry.store.has_blob(f"sha256:{wire.oid(wrong)}")
    assert place.public.ask("PUT", href, data).status == 200


def test_who_stops_sending_is_not_waited_for(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bodies, "STALL_SECONDS", 0.2)
    data = fresh()
    parts_of = urlsplit(place.wire.upload_href(place.repo, data))
    lines = [
        f"PUT {parts_of.path}?{parts_of.query} HTTP/1.1",
        f"Host: {parts_of.netloc}",
        f"Content-Length: {len(data)}",
    ]
    with socket.create_connection((parts_of.hostname, parts_of.port), timeout=30) as raw:
        raw.sendall("\r\n".join([*lines, "", ""]).encode() + data[:1000])
        time.sleep(0.5)
        raw.sendall(data[1000:])
        assert raw.recv(100).startswith(b"HTTP/1.1 408 ")
    assert place.left_behind() == []


def test_addresses_expire_and_fit_one_request_only(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    data, other = fresh(), fresh()
    href = place.wire.upload_href(place.repo, data)
    theirs = place.wire.upload_href(place.repo, other)
    assert place.public.ask("PUT", href, other).status in (400, 422)
    mixed = href.split("?")[0] + "?" + theirs.split("?")[1]
    assert place.public.ask("PUT", mixed, data).status == 403
    assert place.public.ask("PUT", href.replace("/file/", "/part/"), data).status == 403
    assert place.public.ask("PUT", href.split("?")[0], data).status == 403
    monkeypatch.setattr(lfs, "SECONDS", -1.0)
    late = place.public.ask("PUT", place.wire.upload_href(place.repo, data), data)
    assert (late.status, "expired" in late.json["error"]) == (403, True)
    assert not place.has(wire.oid(data))


def test_an_address_dies_with_its_repository(place: Place) -> None:
    data = fresh()
    place.wire.create("ns/short-lived")
    href = place.wire.upload_href("ns/short-lived", data)
    body = {"name": "short-lived", "organization": "ns"}
    for again in (False, True):
        assert place.wire.send("DELETE", "/api/repos/delete", body).status == 200
        if again:
            break
        place.wire.create("ns/short-lived")
        assert place.public.ask("PUT", href, data).status == 404
    assert place.public.ask("PUT", href, data).status == 404
    assert place.left_behind() == []


@pytest.mark.parametrize(
    "change",
    [
        {"operation": "download"},
        {"hash_algo": "sha1"},
        {"objects": None},
        {"objects": [{}]},
        {"objects": [{"oid": "A" * 64, "size": 1}]},
        {"objects": [{"oid": "a" * 63, "size": 1}]},
        {"objects": [{"oid": "a" * 64, "size": -1}]},
        {"objects": [{"oid": "a" * 64, "size": True}]},
        {"objects": [{"oid": "a" * 64, "size": 1.5}]},
        {"objects": [{"oid": "a" * 64, "size": 1}] * 1001},
        {"transfers": "basic"},
    ],
)
def test_batches_that_mean_nothing(place: Place, change: dict[str, Any]) -> None:
    answer = batch(place, b"x", **change)
    assert answer.status == 400
    assert answer.json["error"]


def test_what_has_no_room_is_refused_before_it_is_sent(place: Place) -> None:
    objects = [{"oid": "a" * 64, "size": 10**15}]
    assert batch(place, objects=objects).status == 413


def test_a_known_content_of_another_size(place: Place) -> None:
    data = fresh()
    put(place, data)
    (item,) = batch(place, objects=[{"oid": wire.oid(data), "size": 5}]).json["objects"]
    assert item["error"]["code"] == 422


def test_only_who_may_write_is_given_addresses(place: Place) -> None:
    hub = place.service.hub
    _, reader = hub.tokens.create("reader", "read")
    document = {"operation": "upload", "objects": []}
    path = f"/{place.repo}.git/info/lfs/objects/batch"
    assert Wire(place.wire.url, reader).send("POST", path, document).status == 403
    assert place.public.send("POST", path, document).status == 401
    assert place.wire.send("POST", path, document).status == 200


# --- in parts


@pytest.fixture
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lfs, "PART_BYTES", 100_000)


class InParts:
    """An upload in parts of 100,000 bytes."""

    def __init__(self, place: Place, data: bytes) -> None:
        answer = batch(place, data, transfers=["multipart"])
        assert answer.json["transfer"] == "multipart"
        upload = answer.json["objects"][0]["actions"]["upload"]
        header = upload["header"]
        self.size = int(header.pop("chunk_size"))
        self.hrefs = [header[name] for name in sorted(header, key=int)]
        self.data, self.href, self.wire = data, upload["href"], place.public

    def part(self, number: int) -> bytes:
        return self.data[(number - 1) * self.size : number * self.size]

    def put(self, number: int, body: bytes | None = None) -> Answer:
        return self.wire.ask("PUT", self.hrefs[number - 1], body or self.part(number))

    def complete(self, count: int | None = None, oid: str = "") -> Answer:
        numbers = range(1, (len(self.hrefs) if count is None else count) + 1)
        rows = [{"partNumber": number, "etag": '"x"'} for number in numbers]
        document = {"oid": oid or wire.oid(self.data), "parts": rows}
        return self.wire.send("POST", self.href, document)


@pytest.mark.usefixtures("small_parts")
@pytest.mark.parametrize("order", ["forwards", "backwards", "mixed", "twice"])
def test_parts_in_any_order(place: Place, order: str) -> None:
    data = fresh(450_001)
    upload = InParts(place, data)
    numbers = list(range(1, len(upload.hrefs) + 1))
    assert len(numbers) == 5
    if order == "backwards":
        numbers.reverse()
    elif order == "mixed":
        random.Random(1).shuffle(numbers)
    elif order == "twice":
        numbers = [3, 3, 1, 2, 1, 5, 4, 4, 5]
    for number in numbers:
        answer = upload.put(number)
        assert answer.status == 200
        assert answer.headers["etag"].strip('"')
    assert upload.complete().status == 200
    assert upload.complete().status == 200  # an answer may be lost
    assert place.has(wire.oid(data))
    assert place.left_behind() == []
    path = place.service.registry.store.blob_path(f"sha256:{wire.oid(data)}")
    assert hashlib.sha256(path.read_bytes()).hexdigest() == wire.oid(data)


@pytest.mark.usefixtures("small_parts")
def test_parts_that_are_missing_cut_or_of_another_length(place: Place) -> None:
    data = fresh(250_000)
    upload = InParts(place, data)
    assert upload.complete().status == 404
    assert upload.put(1).status == 200
    assert upload.put(3, upload.part(1)).status == 400
    assert upload.put(2, upload.part(2)[:-1]).status == 400
    upload.wire.cut("PUT", upload.hrefs[1], upload.part(2), 50_000)
    answer = upload.complete()
    assert (answer.status, "2 of 3 parts are missing" in answer.json["error"]) == (400, True)
    assert upload.complete(2).status == 400
    assert upload.complete(oid="a" * 64).status == 400
    assert upload.put(2).status == upload.put(3).status == 200
    assert upload.complete().status == 200
    assert place.left_behind() == []


@pytest.mark.usefixtures("small_parts")
def test_parts_of_another_content_begin_anew(place: Place) -> None:
    data = fresh(250_000)
    upload = InParts(place, data)
    for number in (1, 2, 3):
        upload.put(number, bytes(len(upload.part(number))) if number == 2 else None)
    assert upload.complete().status == 422
    assert place.left_behind() == []
    assert not place.has(wire.oid(data))
    for number in (1, 2, 3):
        assert upload.put(number).status == 200
    assert upload.complete().status == 200


@pytest.mark.usefixtures("small_parts")
def test_all_parts_at_once_and_each_twice(place: Place) -> None:
    data = fresh(1_000_000)
    upload = InParts(place, data)
    found: list[int] = []
    threads = [
        threading.Thread(target=lambda n=n: found.append(upload.put(n).status))
        for n in (*range(1, 11), *range(1, 11))
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert set(found) <= {200, 409}
    assert found.count(200) >= 10
    assert upload.complete().status == 200


@pytest.mark.usefixtures("small_parts")
def test_uploads_in_parts_are_forgotten(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    upload = InParts(place, fresh(250_000))
    upload.put(1)
    assert len(list((place.service.registry.store.home / "tmp").iterdir())) == 1
    monkeypatch.setattr(parts, "IDLE_SECONDS", -1.0)
    InParts(place, fresh(250_000)).complete()
    assert place.left_behind() == []
    monkeypatch.setattr(parts, "MOST_OPEN", 0)
    assert upload.put(1).status == 503


def test_how_a_file_is_cut_into_parts() -> None:
    for size in (1, 99, 100, 101, 12_345):
        upload = Upload(1, "a" * 64, size, 100)
        lengths = [upload.length(number) for number in range(1, upload.count + 1)]
        assert sum(lengths) == size
        assert all(length == 100 for length in lengths[:-1])
        assert 0 < lengths[-1] <= 100


def test_large_files_go_in_parts_where_the_client_can(place: Place) -> None:
    size = 200 * 2**30
    objects = [{"oid": "a" * 64, "size": size}, {"oid": "b" * 64, "size": 5}]
    answer = batch(place, objects=objects)
    large, small = answer.json["objects"]
    header = large["actions"]["upload"]["header"]
    assert len(header) - 1 == -(-size // int(header["chunk_size"])) <= lfs.MOST_PARTS
    assert "header" not in small["actions"]["upload"]
    assert len(answer.body) < 1_000_000
    (only,) = batch(place, objects=objects[:1], transfers=["basic"]).json["objects"]
    assert "header" not in only["actions"]["upload"]
    assert json.loads(answer.body)["transfer"] == "multipart"
