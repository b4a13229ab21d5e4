from __future__ import annotations

import hashlib
import os
import socket
import time
from pathlib import Path
from urllib.parse import urlsplit

import pytest
import wire
from transferkit import Place
from wire import Answer

from adapterhub.hub.server import downloads

LARGE = os.urandom(3 * downloads.PIECE + 777)
TEXT = b'{"peft_type": "LORA"}\n'


@pytest.fixture(scope="module")
def head(place: Place) -> str:
    """The commit that has it all."""
    href = place.wire.upload_href(place.repo, LARGE)
    assert place.public.ask("PUT", href, LARGE).status == 200
    answer = place.wire.commit(
        place.repo,
        wire.header(),
        wire.lfs("sub folder/mödel.safetensors", LARGE),
        wire.regular("config.json", TEXT),
        wire.regular("page.html", b"<script>alert(1)</script>"),
        wire.regular("empty", b""),
    )
    assert answer.status == 200
    return str(answer.json["commitOid"])


MODEL = "sub%20folder/m%C3%B6del.safetensors"


def get(place: Place, path: str, method: str = "GET", rev: str = "main", **headers: str) -> Answer:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return place.wire.ask(method, f"/{place.repo}/resolve/{rev}/{path}", None, named)


def blob_id(data: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


def test_a_file_of_lfs(place: Place, head: str) -> None:
    answer = get(place, MODEL)
    assert answer.body == LARGE
    sha256 = hashlib.sha256(LARGE).hexdigest()
    expected = {
        "x-repo-commit": head,
        "etag": f'"{sha256}"',
        "x-linked-etag": f'"{sha256}"',
        "x-linked-size": str(len(LARGE)),
        "content-length": str(len(LARGE)),
        "accept-ranges": "bytes",
        "content-type": "application/octet-stream",
        "x-content-type-options": "nosniff",
        "content-disposition": "attachment; filename*=UTF-8''m%C3%B6del.safetensors",
    }
    assert {name: answer.headers.get(name) for name in expected} == expected
    assert "sandbox" in answer.headers["content-security-policy"]
    assert not {name for name in answer.headers if "xet" in name or name == "link"}


def test_a_regular_file(place: Place, head: str) -> None:
    answer = get(place, "config.json")
    assert (answer.status, answer.body) == (200, TEXT)
    assert answer.headers["etag"] == f'"{blob_id(TEXT)}"'
    assert answer.headers["content-type"] == "text/plain; charset=utf-8"
    assert "x-linked-etag" not in answer.headers


def test_head_has_the_headers_and_no_body(place: Place, head: str) -> None:
    for path in (MODEL, "config.json", "empty"):
        whole, only = get(place, path), get(place, path, "HEAD")
        changing = ("date", "x-request-id")
        assert only.body == b""
        assert {k: v for k, v in only.headers.items() if k not in changing} == {
            k: v for k, v in whole.headers.items() if k not in changing
        }


def test_nothing_is_a_page(place: Place, head: str) -> None:
    answer = get(place, "page.html")
    assert answer.headers["content-type"] == "application/octet-stream"
    assert answer.headers["content-disposition"].startswith("attachment;")


def test_an_empty_file(place: Place, head: str) -> None:
    answer = get(place, "empty")
    assert (answer.status, answer.body) == (200, b"")
    assert get(place, "empty", Range="bytes=0-").status == 416


SIZE = len(LARGE)


@pytest.mark.parametrize(
    ("asked", "start", "end"),
    [
        ("bytes=0-0", 0, 1),
        ("bytes=0-", 0, SIZE),
        ("bytes=100-199", 100, 200),
        (f"bytes={SIZE - 1}-", SIZE - 1, SIZE),
        (f"bytes=5-{SIZE + 100}", 5, SIZE),
        ("bytes=-1", SIZE - 1, SIZE),
        (f"bytes=-{SIZE * 2}", 0, SIZE),
        (f"bytes={downloads.PIECE - 1}-{downloads.PIECE * 2}", downloads.PIECE - 1, None),
    ],
)
def test_a_range(place: Place, head: str, asked: str, start: int, end: int | None) -> None:
    end = downloads.PIECE * 2 + 1 if end is None else end
    answer = get(place, MODEL, Range=asked)
    assert answer.status == 206
    assert answer.body == LARGE[start:end]
    assert answer.headers["content-range"] == f"bytes {start}-{end - 1}/{SIZE}"
    assert answer.headers["content-length"] == str(end - start)


@pytest.mark.parametrize("asked", [f"bytes={SIZE}-", f"bytes={SIZE}-{SIZE + 5}", "bytes=-0"])
def test_a_range_that_is_not_there(place: Place, head: str, asked: str) -> None:
    answer = get(place, MODEL, Range=asked)
    assert answer.status == 416
    assert answer.headers["content-range"] == f"bytes */{SIZE}"


@pytest.mark.parametrize(
    "asked", ["bytes=5-2", "bytes=1-2,4-5", "lines=1-2", "bytes=", "bytes=-", "bytes=a-b", "x"]
)
def test_a_range_that_is_not_served_gives_all(place: Place, head: str, asked: str) -> None:
    answer = get(place, MODEL, Range=asked)
    assert (answer.status, len(answer.body)) == (200, SIZE)


def test_conditions(place: Place, head: str) -> None:
    etag = f'"{blob_id(TEXT)}"'
    assert get(place, "config.json", If_None_Match=f'"other", W/{etag}').status == 304
    assert get(place, "config.json", If_None_Match="*").status == 304
    assert get(place, "config.json", If_None_Match='"other"').status == 200
    assert get(place, "config.json", If_Range=etag, Range="bytes=0-0").status == 206
    assert get(place, "config.json", If_Range='"other"', Range="bytes=0-0").status == 200


def test_raw_shows_the_pointer_that_git_keeps(place: Place, head: str) -> None:
    answer = place.wire.ask("GET", f"/{place.repo}/raw/main/{MODEL}")
    expected = (
        "version https://git-lfs.github.com/spec/v1\n"
        f"oid sha256:{hashlib.sha256(LARGE).hexdigest()}\nsize {SIZE}\n"
    ).encode()
    assert answer.body == expected
    assert answer.headers["etag"] == f'"{blob_id(expected)}"'
    assert place.wire.ask("GET", f"/{place.repo}/raw/main/config.json").body == TEXT


def test_revisions(place: Place, head: str) -> None:
    later = place.put({"config.json": b"{}"})
    for rev, commit, body in (
        (head, head, TEXT),
        ("main", later, b"{}"),
        (later[:12], later, b"{}"),
        ("refs%2Fheads%2Fmain", later, b"{}"),
    ):
        answer = get(place, "config.json", rev=rev)
        assert (answer.headers["x-repo-commit"], answer.body) == (commit, body)
    place.put({"config.json": TEXT})


def test_what_is_not_there(place: Place, head: str) -> None:
    for path in ("missing.json", "sub%20folder", "config.json/x", ""):
        answer = get(place, path, "HEAD")
        assert (answer.status, answer.code) == (404, "EntryNotFound"), path
    assert len(get(place, "missing.json").headers["x-repo-commit"]) == 40
    assert get(place, "config.json", rev="nowhere").code == "RevisionNotFound"
    answer = place.wire.ask("GET", "/ns/nothing/resolve/main/config.json")
    assert (answer.status, answer.code) == (404, "RepoNotFound")
    answer = place.public.ask("GET", f"/{place.repo}/resolve/main/config.json")
    assert (answer.status, answer.code) == (401, "RepoNotFound")


def test_datasets_have_their_own_addresses(place: Place) -> None:
    place.wire.create("ns/data", type="dataset")
    line = wire.regular("a.txt", b"rows")
    path = "/api/datasets/ns/data/commit/main"
    assert place.wire.ask("POST", path, wire.ndjson(wire.header(), line)).status == 200
    assert place.wire.ask("GET", "/datasets/ns/data/resolve/main/a.txt").body == b"rows"
    assert place.wire.ask("GET", "/ns/data/resolve/main/a.txt").status == 404


def test_who_goes_away_in_the_middle_keeps_no_file_open(place: Place) -> None:
    data = os.urandom(20_000_000)
    place.public.ask("PUT", place.wire.upload_href(place.repo, data), data)
    place.wire.commit(place.repo, wire.header(), wire.lfs("big.bin", data))
    path = place.service.registry.store.blob_path(f"sha256:{wire.oid(data)}")
    parts = urlsplit(place.wire.url)
    for _ in range(5):
        with socket.create_connection((parts.hostname, parts.port), timeout=30) as raw:
            request = f"GET /{place.repo}/resolve/main/big.bin HTTP/1.1\r\nHost: x\r\n"
            raw.sendall(f"{request}Authorization: Bearer {place.wire.token}\r\n\r\n".encode())
            assert raw.recv(1000).startswith(b"HTTP/1.1 200")
    for _ in range(100):
        if not any(_is_open(path.name)):
            break
        time.sleep(0.02)
    assert not any(_is_open(path.name))


def _is_open(name: str) -> list[bool]:
    links = Path("/proc/self/fd").iterdir()
    return [link.readlink().name == name for link in links if link.is_symlink()]
