"""The server as a process: killed within a push, and fed with more than it may hold."""

from __future__ import annotations

import hashlib
import http.client
import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from urllib.parse import urlsplit

import hubkit
import pytest
import wire
from wire import Wire

REPO = "ns/killed"
OLD, NEW = os.urandom(2_000_000), os.urandom(2_000_000)
REGULAR = os.urandom(6_000_000)


def push(to: Wire, data: bytes) -> None:
    """One content by LFS, one within the commit."""
    for item in to.batch(REPO, data).json["objects"]:
        if "actions" in item:
            assert Wire(to.url).ask("PUT", item["actions"]["upload"]["href"], data).status == 200
    lines = (wire.lfs("m.bin", data), wire.regular("large.txt", REGULAR))
    assert to.commit(REPO, wire.header(), *lines).status == 200


def push_until_killed(to: Wire) -> None:
    with suppress(OSError, http.client.HTTPException):
        push(to, NEW)


@pytest.mark.slow
def test_a_killed_server_has_the_old_revision_or_the_new_one(tmp_path: Path) -> None:
    home, token = tmp_path / "home", ""
    heads: list[str] = []
    for delay in (0.0, 0.005, 0.02, 0.04, 0.06, 0.08, 0.12, 0.5):
        with hubkit.serving(home) as hub:
            token = token or hub.token()
            to = Wire(hub.url, token)
            if not heads:
                to.create(REPO)
            push(to, OLD)
            heads.append(to.head(REPO))
            thread = threading.Thread(target=push_until_killed, args=(to,))
            thread.start()
            time.sleep(delay)
            hub.kill()
            thread.join()
        with hubkit.serving(home) as hub:
            to = Wire(hub.url, token)
            now = to.head(REPO)
            expected = OLD if now == heads[-1] else NEW
            assert to.file(REPO, "m.bin").body == expected
            assert to.file(REPO, "large.txt").body == REGULAR
            parent = to.ask("GET", f"/api/models/{REPO}/commits/main").json
            assert heads[-1] in [each["id"] for each in parent[:2]]
            for head in heads:
                assert to.file(REPO, "m.bin", head).body == OLD
            push(to, NEW)
            assert to.file(REPO, "m.bin").body == NEW


def stream(size: int, look: Callable[[], object] = lambda: None) -> Iterator[bytes]:
    piece = bytes(range(256)) * 4096
    for at in range(0, size, len(piece)):
        look()
        yield piece[: size - at]


@pytest.mark.slow
def test_two_gigabytes_each_way_take_little_memory(tmp_path: Path) -> None:
    size = 2_000_000_000
    hasher = hashlib.sha256()
    for piece in stream(size):
        hasher.update(piece)
    oid = hasher.hexdigest()
    with hubkit.serving(tmp_path / "home") as hub:
        to = Wire(hub.url, hub.token())
        to.create(REPO)
        parts = urlsplit(to.url)
        document = {
            "operation": "upload",
            "transfers": ["basic"],
            "objects": [{"oid": oid, "size": size}],
        }
        (item,) = to.send("POST", f"/{REPO}.git/info/lfs/objects/batch", document).json["objects"]
        href = urlsplit(item["actions"]["upload"]["href"])
        connection = http.client.HTTPConnection(parts.netloc, timeout=120)
        target, peaks = f"{href.path}?{href.query}", [0]

        def look() -> None:
            peaks.append(hub.anonymous_memory())

        connection.request("PUT", target, stream(size, look), {"Content-Length": str(size)})
        look()
        assert connection.getresponse().status == 200
        connection.close()
        line = {"key": "lfsFile", "value": {"path": "m", "algo": "sha256", "oid": oid}}
        assert to.commit(REPO, wire.header(), line).status == 200
        signed = {"Authorization": f"Bearer {to.token}"}
        connection.request("GET", f"/{REPO}/resolve/main/m", headers=signed)
        answer, hasher = connection.getresponse(), hashlib.sha256()
        while piece := answer.read(1 << 20):
            hasher.update(piece)
            look()
        connection.close()
        assert hasher.hexdigest() == oid
        assert 10_000_000 < max(peaks) < 300_000_000
