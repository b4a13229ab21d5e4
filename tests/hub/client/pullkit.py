"""A stranger's hub, in memory: what a pull asks of it, and every way in which it may lie."""

from __future__ import annotations

import hashlib
import json
import re
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import pytest

TOKEN = "hf_aVeryPrivateTokenOfMine1234567890"
LARGE = (".safetensors", ".bin", ".npy", ".pt")
Tree = dict[str, bytes]


def blob_id(data: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


def entry(path: str, data: bytes) -> dict[str, Any]:
    found: dict[str, Any] = {
        "type": "file",
        "path": path,
        "size": len(data),
        "oid": blob_id(data),
    }
    if path.endswith(LARGE):
        oid = hashlib.sha256(data).hexdigest()
        found["lfs"] = {"oid": oid, "size": len(data), "pointerSize": 134}
    return found


def tree_of(directory: Path, at: str = "") -> Tree:
    """The files below a directory, below the folder `at` of a repository."""
    files = sorted(path for path in directory.rglob("*") if path.is_file())
    return {
        f"{at}/{path.relative_to(directory).as_posix()}".lstrip("/"): path.read_bytes()
        for path in files
    }


@dataclass(frozen=True)
class Request:
    method: str
    path: str
    headers: Mapping[str, str]


@dataclass
class Hub:
    """`entries` may change a list before it is sent, `body` a file's bytes, `head` its headers."""

    url: str = ""
    commits: dict[str, dict[str, Tree]] = field(default_factory=dict)
    branches: dict[str, dict[str, str]] = field(default_factory=dict)
    requests: list[Request] = field(default_factory=list)
    sent: int = 0
    page: int = 1000
    entries: Callable[[list[dict[str, Any]]], Any] = lambda found: found
    next_page: Callable[[str, int], str | None] | None = None
    info: Callable[[dict[str, Any]], Any] = lambda found: found
    body: Callable[[str, bytes], bytes] = lambda path, data: data
    head: Callable[[str], dict[str, str]] = lambda path: {}
    elsewhere: str | None = None  # where downloads of LFS files are sent to
    length: bool = True
    fault: Callable[[str, str], int | None] = lambda method, path: None

    def put(self, repository: str, tree: Tree, branch: str = "main") -> str:
        text = f"{repository}{sorted((p, blob_id(d)) for p, d in tree.items())}"
        commit = hashlib.sha1(text.encode()).hexdigest()
        self.commits.setdefault(repository, {})[commit] = dict(tree)
        self.branches.setdefault(repository, {})[branch] = commit
        return commit

    def asked(self, what: str) -> list[str]:
        return [f"{r.method} {r.path}" for r in self.requests if what in r.path]

    def forget(self) -> None:
        self.requests.clear()
        self.sent = 0

    @contextmanager
    def serving(self) -> Iterator[Hub]:
        handler = type("Bound", (_Handler,), {"hub": self})
        server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        server.daemon_threads = True
        self.url = f"http://127.0.0.1:{server.server_address[1]}"
        thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
        thread.start()
        try:
            yield self
        finally:
            server.shutdown()
            server.server_close()


class _Handler(BaseHTTPRequestHandler):
    hub: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, *args: Any) -> None:
        pass

    def do_GET(self) -> None:
        parts = urlsplit(self.path)
        headers = {name.lower(): value for name, value in self.headers.items()}
        self.hub.requests.append(Request(self.command, self.path, headers))
        if (status := self.hub.fault(self.command, parts.path)) is not None:
            self.answer({"error": f"fault {status}"}, status)
            return
        routes = {
            r"/api/models/(?P<id>.+)/revision/(?P<rev>[^/]+)": self.revision,
            r"/api/models/(?P<id>.+)/tree/(?P<rev>[^/]+)": self.tree,
            r"/(?P<id>.+)/resolve/(?P<rev>[^/]+)/(?P<path>.+)": self.resolve,
        }
        for pattern, route in routes.items():
            if found := re.fullmatch(pattern, parts.path):
                route(**{name: unquote(text) for name, text in found.groupdict().items()})
                return
        self.missing("RepoNotFound")

    do_HEAD = do_GET

    def answer(self, document: Any, status: int = 200, **headers: str) -> None:
        data = json.dumps(document).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def missing(self, code: str) -> None:
        self.answer({"error": "not found"}, 404, X_Error_Code=code)

    def files(self, repository: str, revision: str) -> tuple[str, Tree] | None:
        commits = self.hub.commits.get(repository)
        if commits is None:
            self.missing("RepoNotFound")
            return None
        commit = self.hub.branches[repository].get(revision, revision)
        if commit not in commits:
            self.missing("RevisionNotFound")
            return None
        return commit, commits[commit]

    def revision(self, id: str, rev: str) -> None:
        if found := self.files(id, rev):
            siblings = [{"rfilename": path} for path in found[1]]
            self.answer(self.hub.info({"id": id, "sha": found[0], "siblings": siblings}))

    def tree(self, id: str, rev: str) -> None:
        if not (found := self.files(id, rev)):
            return
        number = int(parse_qs(urlsplit(self.path).query).get("page", ["0"])[0])
        rows = [entry(path, data) for path, data in sorted(found[1].items())]
        start, end = number * self.hub.page, (number + 1) * self.hub.page
        link = None
        if self.hub.next_page:
            link = self.hub.next_page(urlsplit(self.path).path, number)
        elif end < len(rows):
            link = f"{self.hub.url}{urlsplit(self.path).path}?page={number + 1}"
        headers = {"Link": f'<{link}>; rel="next"'} if link else {}
        self.answer(self.hub.entries(rows[start:end]), **headers)

    def resolve(self, id: str, rev: str, path: str) -> None:
        if not (found := self.files(id, rev)):
            return
        commit, tree = found
        if path not in tree:
            self.missing("EntryNotFound")
            return
        said = entry(path, tree[path])
        digest = said["lfs"]["oid"] if "lfs" in said else said["oid"]
        headers = {"X-Repo-Commit": commit, "ETag": f'"{digest}"'}
        data = self.hub.body(path, tree[path])
        if self.hub.elsewhere and "lfs" in said:
            headers |= {"X-Linked-Size": str(said["size"]), "X-Linked-Etag": f'"{digest}"'}
            headers |= {"Location": f"{self.hub.elsewhere}{self.path}?X-Signature=verysecret"}
            self.send_response(302)
            data = b""
        else:
            self.send_response(200)
        if self.hub.length:
            headers["Content-Length"] = str(len(data))
        else:
            headers["Connection"] = "close"
        for name, value in (headers | self.hub.head(path)).items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "GET":
            try:
                self.wfile.write(data)
                self.hub.sent += len(data)
            except ConnectionError:
                self.close_connection = True


@contextmanager
def connected(tmp_path: Path, patch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """A hub that this process talks to, signed in, without waiting between tries."""
    import huggingface_hub.utils._http as http
    from huggingface_hub import constants

    with Hub().serving() as served:
        settings: dict[str, Any] = {
            "HF_HUB_OFFLINE": False,
            "ENDPOINT": served.url,
            "HUGGINGFACE_CO_URL_TEMPLATE": served.url + "/{repo_id}/resolve/{revision}/{filename}",
            "HF_HUB_CACHE": str(tmp_path / "hf"),
        }
        for name, value in settings.items():
            patch.setattr(constants, name, value)
        patch.setenv("HF_TOKEN", TOKEN)
        patch.setattr(http.time, "sleep", lambda seconds: None)
        yield served
        http.close_session()
