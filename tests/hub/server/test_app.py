"""The application around the handlers: faults, limits, what is logged and counted."""

from __future__ import annotations

import json
import logging
import re
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from urllib.parse import urlsplit

import pytest
from serverkit import Served, ok, running
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from wire import Wire

from adapterhub.errors import InvalidOption, OutputError
from adapterhub.hub.server import logs, metrics, replies, service
from adapterhub.hub.server.call import Call
from adapterhub.hub.server.routes import ROUTES
from adapterhub.hub.server.routing import Match, Route, Router
from adapterhub.hub.state.errors import EntryNotFound, RepoNotFound, Stale

gate = threading.Event()


async def bug(call: Call) -> Response:
    raise RuntimeError("a secret detail")


async def full(call: Call) -> Response:
    raise OutputError("no space left", remedy="free some")


async def broken_answer(call: Call) -> Response:
    async def pieces() -> Any:
        yield b"first"
        raise RuntimeError("half way")

    return StreamingResponse(pieces(), headers={"Content-Length": "1000"})


async def waits(call: Call) -> Response:
    await call.thread(gate.wait, 10)
    return replies.as_json({"waited": True})


async def echo(call: Call) -> Response:
    return replies.as_json({"bytes": len(await call.body(1000))})


async def refuses(call: Call) -> Response:
    raise InvalidOption("not\nthis\x07 ✗", remedy="nor that")


FAULTY = (
    Route("GET", "/bug", bug),
    Route("GET", "/full", full),
    Route("GET", "/broken", broken_answer),
    Route("GET", "/waits", waits),
    Route("POST", "/echo", echo),
    Route("POST", "/refuses", refuses),
)


@pytest.fixture(scope="module")
def faulty(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    with running(tmp_path_factory.mktemp("app") / "home", (*FAULTY, *ROUTES)) as served:
        yield served


# --- faults -----------------------------------------------------------------------------------


def test_a_bug_is_told_to_the_log_only(faulty: Served, caplog: pytest.LogCaptureFixture) -> None:
    answer = faulty.anonymous().ask("GET", "/bug")
    assert answer.status == 500
    assert "secret detail" not in answer.body.decode() + str(answer.headers)
    id = answer.headers["x-request-id"]
    assert id in answer.json["error"]
    record = next(each for each in caplog.records if each.exc_info)
    assert "secret detail" in str(record.exc_info)
    assert vars(record)["fields"] == {"id": id, "route": "/bug"}


def test_what_passes_by_itself_may_be_tried_again(faulty: Served) -> None:
    answer = faulty.anonymous().ask("GET", "/full")
    assert (answer.status, answer.json["error"]) == (507, "no space left (free some)")


def test_half_an_answer_does_not_look_whole(faulty: Served) -> None:
    import http.client

    with pytest.raises((http.client.IncompleteRead, ConnectionError)):
        faulty.anonymous().ask("GET", "/broken")
    assert ok(faulty.anonymous().ask("GET", "/health"))


def test_headers_hold_one_line(faulty: Served) -> None:
    answer = faulty.anonymous().ask("POST", "/refuses", b"")
    assert answer.headers["x-error-message"] == "not this? ?"
    assert answer.json == {"error": "not\nthis\x07 ✗ (nor that)", "code": "invalid-option"}


def test_an_error_reaches_who_is_still_sending(faulty: Served) -> None:
    """Clients send all they have before they look for an answer."""
    answer = faulty.anonymous().ask("POST", "/refuses", bytes(20_000_000))
    assert answer.status == 400


def test_errors_have_the_headers_that_clients_act_upon() -> None:
    errors = (
        (RepoNotFound("a"), 404, "RepoNotFound", None),
        (EntryNotFound("b", commit="c" * 40), 404, "EntryNotFound", "c" * 40),
        (Stale("d"), 412, None, None),
    )
    for error, status, code, commit in errors:
        answer = replies.of_error(error)
        assert answer.status_code == status
        assert answer.headers.get("x-error-code") == code
        assert answer.headers.get("x-repo-commit") == commit


# --- limits -----------------------------------------------------------------------------------


def test_a_body_that_is_too_large(faulty: Served) -> None:
    wire = faulty.anonymous()
    assert ok(wire.ask("POST", "/echo", bytes(1000))) == {"bytes": 1000}
    answer = wire.ask("POST", "/echo", bytes(1001))
    assert (answer.status, answer.json["code"]) == (413, "too-large")


def test_headers_and_addresses_that_are_too_long(faulty: Served) -> None:
    wire = faulty.anonymous()
    assert wire.ask("GET", "/" + "a" * 9000).status == 400
    with suppress(ConnectionError):  # it hangs up, perhaps before all has been sent
        assert wire.ask("GET", "/health", headers={"X-Long": "a" * 200_000}).status == 400
    assert ok(wire.ask("GET", "/health"))


@pytest.mark.parametrize("path", ["/%ff", "/api/models/%C3%28/x", "/api/models/a/b/tree/%ff"])
def test_addresses_that_are_no_text(faulty: Served, path: str) -> None:
    assert faulty.wire().ask("GET", path).status in (400, 404)


@pytest.mark.parametrize(
    ("body", "said"),
    [
        (b"{", "not JSON"),
        (b"[1]", "no JSON object"),
        (b'{"name": NaN}', "not JSON"),
        (b'{"name": 1, "name": 2}', "twice"),
        (b"\xff", "not JSON"),
        (b"[" * 100_000, "not JSON"),
    ],
)
def test_bodies_that_are_no_json(faulty: Served, body: bytes, said: str) -> None:
    answer = faulty.wire().ask("POST", "/api/repos/create", body)
    assert answer.status == 400
    assert said in answer.json["error"]


# --- what is logged and counted ---------------------------------------------------------------


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        ("recursive=true&expand=false", "recursive=true&expand=false"),
        ("sig=abc&expires=12&x=1", "sig=***&expires=***&x=1"),
        ("X-Amz-Signature=abc&access_token=x", "X-Amz-Signature=***&access_token=***"),
        ("q=hf_abcdefghijkl", "q=***"),
        ("a=" + "b" * 101, "a=***"),
        ("a=\x1b[2J", "a=%1B[2J"),
        ("", ""),
    ],
)
def test_secrets_in_an_address_are_masked(query: str, expected: str) -> None:
    assert logs.masked(query.encode()) == expected


def test_a_line_for_each_request(faulty: Served, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, logs.LOGGER.name)
    faulty.repo("logged/one", {"a.txt": b"a"})
    secret = faulty.secret()
    answer = Wire(faulty.url, secret).ask("GET", "/api/models/logged/one?expand=sha&token=abc")
    ok(answer)
    _settle()
    (fields,) = (
        vars(r)["fields"] for r in caplog.records if r.message == "request"
        if vars(r)["fields"]["id"] == answer.headers["x-request-id"]
    )  # fmt: skip
    assert fields["path"] == "/api/models/logged/one"
    assert fields["query"] == "expand=sha&token=***"
    assert (fields["method"], fields["status"], fields["sent"]) == ("GET", 200, len(answer.body))
    assert (fields["token"], fields["client"]) == (secret[5:17], "127.0.0.1")
    text = logs.JsonLines().format(caplog.records[-1])
    assert secret not in text
    assert "\n" not in text
    json.loads(text)


def test_a_token_in_an_odd_place_is_not_logged(
    faulty: Served, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, logs.LOGGER.name)
    secret = faulty.secret()
    document = {"name": f"a b/{secret}"}
    assert Wire(faulty.url, secret).send("POST", "/api/repos/create", document).status == 400
    assert Wire(faulty.url, secret).ask("GET", f"/api/models?sort={secret}").status == 400
    _settle()
    text = "".join(map(logs.JsonLines().format, caplog.records))
    assert "sort is" in text and secret not in text


def _settle() -> None:
    """The line is written after the answer has gone."""
    time.sleep(0.05)


def test_lines_of_the_log() -> None:
    record = logging.LogRecord("x", logging.ERROR, "f", 1, "what\nhappened", (), None)
    record.fields = {"path": Path("/a")}
    try:
        raise ValueError("this")
    except ValueError as error:
        record.exc_info = (ValueError, error, error.__traceback__)
    line = json.loads(logs.JsonLines().format(record))
    assert (line["event"], line["level"], line["path"]) == ("what\nhappened", "error", "/a")
    assert "ValueError: this" in line["traceback"]
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", line["time"])


def test_metrics(faulty: Served) -> None:
    faulty.anonymous().ask("GET", "/api/models/counted/secret-name")
    _settle()
    assert b"adapterhub_repositories" not in faulty.anonymous().ask("GET", "/metrics").body
    answer = faulty.wire("read").ask("GET", "/metrics")
    assert answer.headers["content-type"] == "text/plain; version=0.0.4; charset=utf-8"
    text = answer.body.decode()
    assert "secret-name" not in text
    labels = 'method="GET",route="/api/{kind}/{repo}"'
    assert f'adapterhub_requests_total{{{labels},status="401"}} ' in text
    assert f'adapterhub_request_seconds_bucket{{{labels},le="+Inf"}} ' in text
    (resident,) = re.findall(r"^adapterhub_resident_memory_bytes (\d+)$", text, re.MULTILINE)
    assert int(resident) > 10_000_000
    count = len(faulty.hub.repositories.list(readable=None))
    assert f"\nadapterhub_repositories {count}\n" in text
    for name in re.findall(r"^(\w+?)(?:_bucket|_sum|_count)?[ {]", text, re.MULTILINE):
        assert f"# TYPE {name} " in text


def test_metrics_add_up() -> None:
    found = metrics.Metrics()
    for seconds in (0.001, 0.3, 1000.0):
        found.began()
        found.ended("GET", '/a"b', 200, seconds=seconds, received=5, sent=7)
    found.began()
    text = found.text({"things": ("How many.", 3.0)})
    assert 'adapterhub_requests_total{method="GET",route="/a\\"b",status="200"} 3\n' in text
    label = 'adapterhub_request_seconds_bucket{method="GET",route="/a\\"b",le='
    assert [line.split()[-1] for line in text.splitlines() if line.startswith(label)] == [
        *("1", "1", "1", "2", "2", "2", "2", "2", "3"),
    ]
    assert "adapterhub_received_bytes_total 15\n" in text
    assert "adapterhub_sent_bytes_total 21\n" in text
    assert "adapterhub_running_requests 1\n" in text
    assert "adapterhub_things 3\n" in text


def test_who_hangs_up_is_counted_as_cut_off(
    faulty: Served, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, logs.LOGGER.name)
    faulty.anonymous().cut("POST", "/echo", bytes(500), 10)
    end = time.monotonic() + 5
    while time.monotonic() < end:
        lines = [vars(r).get("fields", {}) for r in caplog.records if r.message == "request"]
        if any(each.get("route") == "/echo" and each.get("cut_off") for each in lines):
            return
        time.sleep(0.01)
    raise AssertionError(lines)


def test_requests_that_wait_do_not_hold_others_up(faulty: Served) -> None:
    gate.clear()
    parts = urlsplit(faulty.url)
    with socket.create_connection((parts.hostname, parts.port)) as raw:
        raw.sendall(b"GET /waits HTTP/1.1\r\nHost: x\r\n\r\n")
        assert ok(faulty.anonymous().ask("GET", "/health"))
        gate.set()
        answer = b""
        while b"waited" not in answer:
            answer += raw.recv(4096) or b"waited, in vain"
        assert answer.endswith(b'{"waited":true}')


# --- addresses --------------------------------------------------------------------------------


def found(method: str, path: str) -> tuple[str, dict[str, str]] | tuple[str, ...]:
    match = Router(ROUTES).find(method, path.encode())
    return (match.template, dict(match.params)) if isinstance(match, Match) else match


@pytest.mark.parametrize(
    ("path", "template", "params"),
    [
        ("models/gpt2", "{repo}", {"repo": "gpt2"}),
        ("models/a/b", "{repo}", {"repo": "a/b"}),
        ("models/a/b/revision/refs%2Fpr%2F1", "{repo}/revision/{rev}",
         {"repo": "a/b", "rev": "refs/pr/1"}),
        ("models/gpt2/tree/main", "{repo}/tree/{rev}/{path:rest}",
         {"repo": "gpt2", "rev": "main", "path": ""}),
        ("models/a/b/tree/dev%2Fx/c/d%20e", "{repo}/tree/{rev}/{path:rest}",
         {"repo": "a/b", "rev": "dev/x", "path": "c/d e"}),
        ("models/a/b/tree/main/x%2Fy", "{repo}/tree/{rev}/{path:rest}",
         {"repo": "a/b", "rev": "main", "path": "x/y"}),
        ("datasets/a/refs", "{repo}/refs", {"repo": "a"}),
        ("datasets/a/b/refs", "{repo}/refs", {"repo": "a/b"}),
    ],
)  # fmt: skip
def test_which_route(path: str, template: str, params: dict[str, str]) -> None:
    kind = path.split("/")[0]
    expected = (f"/api/{{kind}}/{template}", {"kind": kind, **params})
    assert found("GET", f"/api/{path}") == expected


def test_no_route() -> None:
    assert found("GET", "/api/things/a") == ()
    assert found("PUT", "/api/models/a/b") == ("GET",)


@pytest.mark.parametrize(
    ("settings", "headers", "expected"),
    [
        ({}, {"host": "hub:8080"}, "http://hub:8080"),
        ({}, {"host": "[::1]:80"}, "http://[::1]:80"),
        ({}, {"host": 'evil">/x'}, "http://127.0.0.1:99"),
        ({}, {}, "http://127.0.0.1:99"),
        ({}, {"host": "a", "x-forwarded-proto": "https", "x-forwarded-host": "b"}, "http://a"),
        ({"behind_proxy": True}, {"host": "a", "x-forwarded-proto": "https"}, "https://a"),
        (
            {"behind_proxy": True},
            {"host": "a", "x-forwarded-proto": "https, http", "x-forwarded-host": "b, c"},
            "https://b",
        ),
        ({"behind_proxy": True}, {"host": "a", "x-forwarded-proto": "gopher"}, "http://a"),
        ({"url": "https://hub.example.org/"}, {"host": "a"}, "https://hub.example.org"),
    ],
)
def test_the_address_in_links(
    settings: dict[str, Any], headers: dict[str, str], expected: str
) -> None:
    scope = {
        "type": "http",
        "scheme": "http",
        "path": "/",
        "headers": [(name.encode(), value.encode()) for name, value in headers.items()],
        "server": ("127.0.0.1", 99),
    }
    fake = SimpleNamespace(settings=service.Settings(**settings))
    assert service.Service.url(fake, Request(scope)) == expected  # type: ignore[arg-type]
