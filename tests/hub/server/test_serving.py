"""`adapterhub serve` as a process: its start, what it refuses, its end."""

from __future__ import annotations

import json
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from urllib.parse import urlsplit

import hubkit
import pytest
from wire import Wire, header, regular

from adapterhub.errors import InvalidOption, MissingExtra
from adapterhub.hub.server import serving
from adapterhub.hub.state.state import Hub
from adapterhub.registry import Registry
from adapterhub.store import Store


def refused(home: Path, *options: str) -> str:
    command = [sys.executable, "-m", "adapterhub", "serve", *options]
    environment = hubkit.environment(home)
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60)
    assert done.returncode == 1, done.stdout + done.stderr
    return done.stderr


def test_start_use_and_stop(tmp_path: Path) -> None:
    with hubkit.serving(tmp_path / "home") as hub:
        greeting = "".join(hub.log)
        assert f"Hub at {hub.url}" in greeting
        assert f"export HF_ENDPOINT={hub.url}" in greeting
        assert "adapterhub token create NAME --write" in greeting
        secret = hub.token()  # while it runs
        wire = Wire(hub.url, secret)
        assert wire.create("ns/one").status == 200
        assert wire.ask("GET", "/api/models/ns/one").json["id"] == "ns/one"
        hub.process.terminate()
        assert hub.process.wait(20) == 0
        log = "".join(hub.log)
        assert secret not in log
        lines = [json.loads(line) for line in hub.log if line.startswith("{")]
        assert {"/api/repos/create", "/api/{kind}/{repo}"} <= {each.get("route") for each in lines}
    with hubkit.serving(tmp_path / "home") as hub:
        assert Wire(hub.url, secret).ask("GET", "/api/models/ns/one").status == 200


@pytest.mark.slow
def test_it_says_where_it_is_in_json(tmp_path: Path) -> None:
    with hubkit.serving(tmp_path / "home", "--json", "--log-level", "error") as hub:
        document = json.loads("".join(hub.log))
        assert document["result"] == {"url": hub.url, "home": str(tmp_path / "home")}


@pytest.mark.slow
def test_a_running_request_may_end(tmp_path: Path) -> None:
    """A commit whose body is still on its way when the server is told to stop."""
    with hubkit.serving(tmp_path / "home") as hub:
        wire = Wire(hub.url, hub.token())
        body = b'{"name": "slow", "organization": "ns"}'
        parts = urlsplit(hub.url)
        with socket.create_connection((parts.hostname, parts.port), timeout=20) as raw:
            lines = ["POST /api/repos/create HTTP/1.1", f"Host: {parts.netloc}"]
            lines += [f"Authorization: Bearer {wire.token}", f"Content-Length: {len(body)}", "", ""]
            raw.sendall("\r\n".join(lines).encode() + body[:10])
            time.sleep(0.3)
            hub.process.send_signal(signal.SIGINT)
            time.sleep(0.3)
            raw.sendall(body[10:])
            answer = raw.recv(65536)
        assert answer.startswith(b"HTTP/1.1 200"), answer
        assert hub.process.wait(20) == 0


@pytest.mark.slow
def test_a_port_that_is_taken(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        said = refused(tmp_path / "home", "--port", str(other.getsockname()[1]))
    assert "is in use by another program" in said
    assert "--port 0" in said
    assert "Traceback" not in said


@pytest.mark.slow
def test_other_machines_need_a_token(tmp_path: Path) -> None:
    home = tmp_path / "home"
    said = refused(home, "--host", "0.0.0.0", "--port", "0")
    assert "no token exists" in said
    assert "adapterhub token create NAME --write" in said
    with Store(home) as store, Hub(store) as hub:
        hub.tokens.create("late", days=1e-9)
        hub.tokens.revoke(hub.tokens.create("gone")[0].id)
        with pytest.raises(InvalidOption, match="no token exists"):
            serving.require_token(hub, "0.0.0.0")
        hub.tokens.create("ann")
        serving.require_token(hub, "0.0.0.0")
    command = [sys.executable, "-m", "adapterhub", "serve", "--host", "0.0.0.0", "--port", "0"]
    with subprocess.Popen(
        [*command, "--json"],
        env=hubkit.environment(home),
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    ) as process:
        try:
            document = json.loads("".join(process.stdout.readline() for _ in range(8)))  # type: ignore[union-attr]
            port = urlsplit(document["result"]["url"]).port
            wire = Wire(f"http://127.0.0.1:{port}")
            assert wire.ask("GET", "/api/models").status == 401
            assert wire.ask("GET", "/health").status == 200
        finally:
            process.terminate()
        assert process.wait(20) == 0


@pytest.mark.slow
def test_limits_that_were_asked_for(tmp_path: Path) -> None:
    with hubkit.serving(tmp_path / "home", "--max-file-size", "1MB", "--max-files", "3") as hub:
        wire = Wire(hub.url, hub.token())
        assert wire.create("a/b").status == 200
        answer = wire.batch("a/b", bytes(1_000_001))
        assert answer.status == 413 and "at most 1000000" in answer.json["error"]
        lines = [regular(f"f{number}", b"x") for number in range(3)]
        answer = wire.commit("a/b", header(), *lines)  # and .gitattributes
        assert answer.status == 413 and "at most 3" in answer.json["error"]
    said = refused(tmp_path / "home", "--max-file-size", "much")
    assert "'much' is not a size" in said


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"port": 70000}, "port 70000"),
        ({"url": "hub.example.org"}, "'hub.example.org' is no address of a hub"),
        ({"url": "ftp://a"}, "'ftp://a' is no address"),
        ({"log_level": "loud"}, "log level 'loud'"),
    ],
)
def test_options_that_make_no_sense(options: dict[str, object], said: str) -> None:
    with pytest.raises(InvalidOption, match=said):
        serving.Options(**options)  # type: ignore[arg-type]


@pytest.mark.parametrize("host", ["256.1.1.1", "no such host", "", "1.2.3.4", "\ud800"])
def test_hosts_that_are_not_ours(host: str) -> None:
    with pytest.raises(InvalidOption), serving.listening(host, 0):
        pass


@pytest.mark.parametrize(
    ("host", "near"), [("127.0.0.1", True), ("localhost", True), ("::1", True), ("0.0.0.0", False)]
)
def test_what_is_loopback(host: str, near: bool) -> None:
    if host == "::1" and not socket.has_ipv6:
        pytest.skip("no IPv6")
    with serving.listening(host, 0) as listener:
        assert serving.is_loopback(listener) == near
        port = listener.getsockname()[1]
        shown = {"::1": "[::1]", "0.0.0.0": socket.gethostname()}.get(host)
        assert serving.address(listener) in (
            [f"http://{shown}:{port}"]
            if shown
            else [f"http://127.0.0.1:{port}", f"http://[::1]:{port}"]
        )


def test_a_package_that_is_not_installed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(serving, "NEEDS", ("starlette", "no_such_package_here"))
    with Registry(tmp_path / "home") as registry, pytest.raises(MissingExtra) as said:
        serving.serve(registry, serving.Options("127.0.0.1", 0), lambda url: None)
    assert said.value.remedy == "pip install 'adapterhub[server]'"
