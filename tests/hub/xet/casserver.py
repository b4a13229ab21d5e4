"""The smallest server that hf_xet uploads to, and how to run hf_xet against it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from adapterhub.errors import AdapterHubError, NotFound
from adapterhub.hub.xet.ingest import Delivered, register
from adapterhub.hub.xet.xorbs import Space, Xorbs
from adapterhub.store import Store

PIECE = 256 * 1024
CLIENT = Path(__file__).with_name("xet_client.py")


@dataclass
class Cas:
    """What was asked of the server, and what came of it. `port` stands once it listens."""

    store: Store
    xorbs: Xorbs
    port: int = 0
    requests: list[str] = field(default_factory=list)
    sent_xorbs: dict[str, bytes] = field(default_factory=dict)
    sent_shards: list[bytes] = field(default_factory=list)
    delivered: list[tuple[str, Delivered]] = field(default_factory=list)
    refusals: list[AdapterHubError] = field(default_factory=list)
    seconds: float = 0.0  # spent on xorbs and shards
    record: bool = True

    def token_url(self, repository: str) -> str:
        return f"http://127.0.0.1:{self.port}/token/{repository}"

    def cas_url(self, repository: str) -> str:
        epoch = self.xorbs.space(repository).epoch
        return f"http://127.0.0.1:{self.port}/xet/{repository}/{epoch}"


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    cas: Cas

    def do_GET(self) -> None:
        self._route()

    def do_POST(self) -> None:
        self._route()

    def _route(self) -> None:
        self.cas.requests.append(f"{self.command} {self.path}")
        parts = self.path.strip("/").split("/")
        started = time.perf_counter()
        try:
            answer = self._answer(parts)
        except AdapterHubError as error:
            self.cas.refusals.append(error)
            self._send(404 if isinstance(error, NotFound) else 400, {"error": str(error)})
            return
        self.cas.seconds += time.perf_counter() - started
        self._send(200 if answer else 404, answer or {"error": "unknown"})

    def _answer(self, parts: list[str]) -> dict[str, Any] | None:
        if parts[0] == "token":
            url = self.cas.cas_url(parts[1])
            return {"casUrl": url, "accessToken": "secret", "exp": int(time.time()) + 3600}
        if parts[0] != "xet" or parts[3:5] not in (["v1", "xorbs"], ["v1", "shards"]):
            self._body()
            return None
        space = self.cas.xorbs.space(parts[1], parts[2])
        if parts[4] == "xorbs":
            return {"was_inserted": self._take_xorb(space, parts[6])}
        data = self._body()
        self.cas.sent_shards.append(data)
        for each in register(self.cas.store, space, data, lambda digest, size: None):
            self.cas.delivered.append((parts[1], each))
        return {"result": 1}

    def _take_xorb(self, space: Space, hash: str) -> bool:
        kept = []
        with space.receiving(hash) as receiving:
            for piece in self._pieces():
                receiving.feed(piece)
                kept += [piece] if self.cas.record else []
            new = receiving.finish()
        if self.cas.record:
            self.cas.sent_xorbs[hash] = b"".join(kept)
        return new

    def _pieces(self) -> Iterator[bytes]:
        left = int(self.headers.get("Content-Length") or 0)
        while left and (piece := self.rfile.read(min(left, PIECE))):
            left -= len(piece)
            yield piece

    def _body(self) -> bytes:
        return b"".join(self._pieces())

    def _send(self, status: int, answer: dict[str, Any]) -> None:
        body = json.dumps(answer).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        pass


@contextmanager
def serving(home: Path) -> Iterator[Cas]:
    """A server over a new store and new xorbs below `home`."""
    with Store(home) as store:
        cas = Cas(store, Xorbs(home / "hub" / "xet"))
        handler = type("Handler", (_Handler,), {"cas": cas})
        server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        cas.port = server.server_address[1]
        thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
        thread.start()
        try:
            yield cas
        finally:
            server.shutdown()
            server.server_close()
            thread.join()


def upload(
    cas: Cas, repository: str, files: Sequence[Path], cache: Path, *flags: str
) -> list[dict[str, Any]]:
    """What hf_xet says of the files that it sent. Raises RuntimeError with its words."""
    names = [str(each) for each in files]
    done = subprocess.run(
        [sys.executable, str(CLIENT), cas.token_url(repository), *flags, *names],
        capture_output=True,
        text=True,
        timeout=120,
        env={**os.environ, "HF_XET_CACHE": str(cache), "HF_HOME": str(cache)},
        check=False,
    )
    if done.returncode:
        raise RuntimeError(done.stderr)
    infos: list[dict[str, Any]] = json.loads(done.stdout)
    return infos
