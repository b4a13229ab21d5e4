"""Clients that take all they can of a server process: memory, threads, connections, time."""

from __future__ import annotations

import socket
import sqlite3
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing
from urllib.parse import urlsplit

import hubkit
import pytest
from wire import Wire

MIB = 1024 * 1024


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[hubkit.Hub]:
    with hubkit.serving(tmp_path_factory.mktemp("pressure") / "home") as hub:
        yield hub
        assert "Traceback" not in "".join(hub.log)


@pytest.fixture(scope="module")
def writer(hub: hubkit.Hub) -> Wire:
    wire = Wire(hub.url, hub.token())
    assert wire.create("pressure/public", private=False).status == 200
    return wire


def connected(hub: hubkit.Hub) -> socket.socket:
    parts = urlsplit(hub.url)
    return socket.create_connection((parts.hostname, parts.port), timeout=30)


@pytest.mark.slow
def test_bodies_that_never_end_take_no_memory(hub: hubkit.Hub) -> None:
    before = hub.anonymous_memory()
    head = f"POST /api/validate-yaml HTTP/1.1\r\nHost: x\r\nContent-Length: {4 * MIB}\r\n\r\n"
    with ExitStack() as stack:
        for _ in range(40):
            raw = stack.enter_context(connected(hub))
            raw.sendall(head.encode() + bytes(4 * MIB - 1))
        time.sleep(0.5)
        assert hub.anonymous_memory() < before + 80 * MIB
    assert Wire(hub.url).ask("GET", "/health").status == 200


@pytest.mark.slow
def test_shards_that_are_refused_leave_no_memory_behind(hub: hubkit.Hub, writer: Wire) -> None:
    place, junk = writer.xet("pressure/public"), bytes(64 * MIB)
    before = hub.anonymous_memory()

    def send(_: int) -> int:
        return place.ask("POST", "/v1/shards", junk).status

    with ThreadPoolExecutor(12) as pool:
        assert set(pool.map(send, range(12))) == {422}
    assert hub.anonymous_memory() < before + 200 * MIB


def test_readers_do_not_wait_for_writers(hub: hubkit.Hub, writer: Wire) -> None:
    """More requests than there are threads wait for a database that another process holds."""
    reader = Wire(hub.url, hub.token("--read"))
    threads = [
        threading.Thread(target=writer.create, args=(f"pressure/r{number}",))
        for number in range(45)
    ]
    with closing(sqlite3.connect(hub.home / "hub.db", isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        try:
            for thread in threads:
                thread.start()
            time.sleep(0.5)
            began = time.monotonic()
            for wire in (Wire(hub.url), reader):
                assert wire.file("pressure/public", ".gitattributes").status == 200
            assert time.monotonic() - began < 25  # the writers wait until all is done
            assert not writer_done(reader, "pressure/r0")
        finally:
            other.execute("ROLLBACK")
            for thread in threads:
                thread.join()
    assert all(writer_done(writer, f"pressure/r{number}") for number in range(45))


def writer_done(wire: Wire, repo: str) -> bool:
    return wire.ask("GET", f"/api/models/{repo}").status == 200


@pytest.mark.slow
def test_large_documents_do_not_hold_others_up(hub: hubkit.Hub) -> None:
    body = b'{"x":[' + b"1," * 2_000_000 + b"1]}"
    spans: list[tuple[float, float]] = []
    done = threading.Event()

    def look() -> None:
        while not done.is_set():
            began = time.monotonic()
            Wire(hub.url).ask("GET", "/health")
            spans.append((began, time.monotonic()))

    looking = threading.Thread(target=look)
    looking.start()
    try:
        began = time.monotonic()
        assert Wire(hub.url).ask("POST", "/api/validate-yaml", body).status == 200
        end = time.monotonic()
    finally:
        done.set()
        looking.join()
    assert sum(began < first and last < end for first, last in spans) > 2
