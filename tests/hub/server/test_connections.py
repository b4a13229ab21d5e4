"""Connections on which nothing happens, or too little."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from urllib.parse import urlsplit

import pytest
import uvicorn
from serverkit import Served, ok
from uvicorn.protocols.http.h11_impl import H11Protocol
from wire import Wire

from adapterhub.hub.server import connections, serving
from adapterhub.hub.server.app import App
from adapterhub.hub.server.routes import ROUTES

REQUEST = b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n"
MOST = 8


@pytest.fixture
def guarded(served: Served, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Another door to `served`, for MOST connections, which have half a second."""
    monkeypatch.setattr(connections, "HEADER_SECONDS", 0.5)
    monkeypatch.setattr(connections, "SENT_SECONDS", 0.5)
    with serving.listening("127.0.0.1", 0) as listener:
        config = uvicorn.Config(
            App(served.service, ROUTES),
            http=connections.protocol(H11Protocol, MOST),
            ws="none",
            lifespan="off",
            log_config=None,
            timeout_keep_alive=2,
        )
        server = uvicorn.Server(config)
        thread = threading.Thread(target=server.run, args=([listener],))
        thread.start()
        yield serving.address(listener)
        server.should_exit = True
        thread.join(20)
        assert not thread.is_alive()


@contextmanager
def connected(url: str) -> Iterator[socket.socket]:
    parts = urlsplit(url)
    with socket.create_connection((parts.hostname, parts.port), timeout=10) as raw:
        yield raw


def answered(raw: socket.socket, body: bytes = b'{"status":"ok"}', count: int = 1) -> bool:
    """Reads `count` whole answers of 200; they come in pieces of any size."""
    seen = b""
    while seen.count(body) < count:
        piece = raw.recv(1000)
        if not piece:
            return False
        seen += piece
    return seen.count(b"200 OK") == count


def ended(raw: socket.socket) -> bool:
    try:
        return raw.recv(1000) == b""
    except ConnectionResetError:
        return True


@pytest.mark.parametrize("first", [b"", b"GET /health HTTP/1.1\r\nHos", REQUEST])
def test_headers_that_do_not_come(guarded: str, first: bytes) -> None:
    with connected(guarded) as raw:
        raw.sendall(first)
        if first == REQUEST:
            assert answered(raw)
            raw.sendall(b"GET /health HTTP/1.1\r\nHos")
        began = time.monotonic()
        with pytest.raises((AssertionError, ConnectionError)):  # one byte at a time does not help
            while True:
                time.sleep(0.1)
                raw.sendall(b"x")
                assert time.monotonic() - began < 30, "never cut off"
        assert time.monotonic() - began > 0.2


@pytest.mark.slow
def test_who_waits_between_requests_is_not_cut_off(guarded: str) -> None:
    with connected(guarded) as raw:
        for _ in range(2):
            raw.sendall(REQUEST)
            assert answered(raw)
            time.sleep(0.8)
        raw.sendall(REQUEST + REQUEST)
        time.sleep(0.8)
        assert answered(raw, count=2)


def test_a_slow_body_is_no_silence(guarded: str) -> None:
    with connected(guarded) as raw:
        head = b"POST /api/validate-yaml HTTP/1.1\r\nHost: x\r\nContent-Length: 17\r\n\r\n"
        raw.sendall(head + b'{"content": ')
        time.sleep(0.8)
        raw.sendall(b'"hi"}')
        assert answered(raw, b'"errors":[]')


@pytest.mark.slow
def test_who_does_not_read_is_cut_off(guarded: str, served: Served) -> None:
    served.repo("slow/reader", {"a.safetensors": bytes(20_000_000)})
    with connected(guarded) as raw:
        raw.sendall(b"GET /slow/reader/resolve/main/a.safetensors HTTP/1.1\r\nHost: x\r\n\r\n")
        time.sleep(1.5)
        received = 0
        with pytest.raises((AssertionError, ConnectionError)):
            while piece := raw.recv(1_000_000):
                received += len(piece)
            assert received > 20_000_000
        assert received < 20_000_000


def test_the_oldest_silence_makes_room(guarded: str) -> None:
    with ExitStack() as stack:
        silent = [stack.enter_context(connected(guarded)) for _ in range(MOST)]
        time.sleep(0.1)
        assert ok(Wire(guarded).ask("GET", "/health"))
        assert ended(silent[0])
        silent[-1].sendall(REQUEST)
        assert answered(silent[-1])


def test_room_for_files(monkeypatch: pytest.MonkeyPatch) -> None:
    limits = [(256, 9000)]
    monkeypatch.setattr(connections.resource, "getrlimit", lambda kind: limits[-1])
    monkeypatch.setattr(connections.resource, "setrlimit", lambda kind, new: limits.append(new))
    assert connections.room() == 3000
    assert limits[-1] == (9000, 9000)
    limits.append((connections.resource.RLIM_INFINITY, connections.resource.RLIM_INFINITY))
    assert connections.room() == connections.MOST
