"""Requests byte by byte, for what a proper client would never send."""

from __future__ import annotations

import base64
import hashlib
import http.client
import json
import socket
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit


@dataclass(frozen=True)
class Answer:
    """Names of `headers` are lower-cased."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def code(self) -> str:
        return self.headers.get("x-error-code", "")

    @property
    def json(self) -> Any:
        return json.loads(self.body)


@dataclass(frozen=True)
class Wire:
    """One connection for each request. `token` empty: anonymous."""

    url: str
    token: str = ""

    def ask(
        self,
        method: str,
        path: str,
        body: bytes | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> Answer:
        """`path` is sent as it is, unquoted or not, behind that of `url`; a whole URL alone."""
        parts = urlsplit(self.url)
        connection = http.client.HTTPConnection(parts.hostname or "", parts.port, timeout=60)
        try:
            connection.putrequest(method, self._target(path), skip_accept_encoding=True)
            for name, value in {**self._signed(), **(headers or {})}.items():
                connection.putheader(name, value)
            if body is not None and "Content-Length" not in (headers or {}):
                connection.putheader("Content-Length", str(len(body)))
            connection.endheaders(body)
            answer = connection.getresponse()
            pairs = {name.lower(): value for name, value in answer.getheaders()}
            return Answer(answer.status, pairs, answer.read())
        finally:
            connection.close()

    def send(self, method: str, path: str, document: Any, **headers: str) -> Answer:
        body = json.dumps(document).encode()
        return self.ask(method, path, body, {"Content-Type": "application/json", **headers})

    def cut(self, method: str, path: str, body: bytes, keep: int) -> None:
        """Says that all of `body` comes, sends `keep` bytes of it, and hangs up."""
        with self.unanswered(method, path, body, keep):
            pass

    @contextmanager
    def unanswered(
        self, method: str, path: str, body: bytes, keep: int | None = None
    ) -> Iterator[None]:
        """As `cut`, and hangs up at the end of the block; `keep` absent: after all of `body`."""
        parts = urlsplit(self.url)
        lines = [f"{method} {self._target(path)} HTTP/1.1", f"Host: {parts.netloc}"]
        lines += [f"{name}: {value}" for name, value in self._signed().items()]
        lines += [f"Content-Length: {len(body)}", "", ""]
        with socket.create_connection((parts.hostname, parts.port), timeout=60) as raw:
            raw.sendall("\r\n".join(lines).encode() + body[:keep])
            yield

    def _target(self, path: str) -> str:
        parts = urlsplit(self.url)
        if path.startswith(f"{parts.scheme}://"):
            return path.removeprefix(f"{parts.scheme}://{parts.netloc}")
        return parts.path + path

    def _signed(self) -> dict[str, str]:
        return {"Authorization": f"Bearer {self.token}"} if self.token else {}

    # --- the steps of a push

    def create(self, repo: str, **more: Any) -> Answer:
        namespace, name = repo.split("/")
        document = {"name": name, "organization": namespace, "private": True, **more}
        return self.send("POST", "/api/repos/create", document)

    def head(self, repo: str, revision: str = "main") -> str:
        return str(self.ask("GET", f"/api/models/{repo}/revision/{revision}").json["sha"])

    def batch(self, repo: str, data: bytes) -> Answer:
        document = {
            "operation": "upload",
            "transfers": ["basic", "multipart"],
            "objects": [{"oid": oid(data), "size": len(data)}],
            "hash_algo": "sha256",
        }
        return self.send("POST", f"/{repo}.git/info/lfs/objects/batch", document)

    def upload_href(self, repo: str, data: bytes) -> str:
        (item,) = self.batch(repo, data).json["objects"]
        return str(item["actions"]["upload"]["href"])

    def xet(self, repo: str) -> Wire:
        """The place where this repository's xorbs go, with the right to write there."""
        found = self.ask("GET", f"/api/models/{repo}/xet-write-token/main").json
        return Wire(found["casUrl"], found["accessToken"])

    def commit(self, repo: str, *lines: dict[str, Any], revision: str = "main") -> Answer:
        path = f"/api/models/{repo}/commit/{revision}"
        return self.ask("POST", path, ndjson(*lines), {"Content-Type": "application/x-ndjson"})

    def file(self, repo: str, path: str, revision: str = "main") -> Answer:
        return self.ask("GET", f"/{repo}/resolve/{revision}/{path}")


def oid(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def header(summary: str = "a commit", **more: str) -> dict[str, Any]:
    return {"key": "header", "value": {"summary": summary, "description": "", **more}}


def regular(path: str, data: bytes) -> dict[str, Any]:
    content = base64.b64encode(data).decode()
    return {"key": "file", "value": {"path": path, "content": content, "encoding": "base64"}}


def lfs(path: str, data: bytes) -> dict[str, Any]:
    value = {"path": path, "algo": "sha256", "oid": oid(data), "size": len(data)}
    return {"key": "lfsFile", "value": value}


def ndjson(*lines: dict[str, Any]) -> bytes:
    return b"".join(json.dumps(line).encode() + b"\n" for line in lines)
