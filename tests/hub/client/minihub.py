"""As much of a hub as a push meets: repositories, trees, LFS and commits, in memory."""

from __future__ import annotations

import base64
import hashlib
import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import pytest

Tree = dict[str, bytes]
TOKEN = "hf_aVeryPrivateTokenOfMine1234567890"
CUT = -1  # as a status: the connection is closed without an answer


@dataclass
class Repository:
    private: bool = True
    branches: dict[str, str] = field(default_factory=dict)
    trees: dict[str, Tree] = field(default_factory=dict)
    titles: dict[str, str] = field(default_factory=dict)
    gated: bool = False

    def commit(self, branch: str, tree: Tree, title: str = "", base: str = "") -> str:
        parent = self.branches.get(branch, base)
        made = hashlib.sha1(f"{parent}{title}{len(self.trees)}".encode()).hexdigest()
        self.branches[branch] = made
        self.trees[made], self.titles[made] = dict(tree), title
        return made

    def tree(self, revision: str = "main") -> Tree:
        return self.trees[self.branches.get(revision, revision)]


class MiniHub:
    """`fault(method, path)` may give a status to answer with instead, or CUT."""

    def __init__(self) -> None:
        self.repositories: dict[str, Repository] = {}
        self.blobs: dict[str, bytes] = {}
        self.requests: list[str] = []
        self.headers: list[str] = []
        self.url = ""
        self.large = (".safetensors", ".bin")
        self.fault: Callable[[str, str], int | None] = lambda method, path: None
        self.before_commit: Callable[[], None] = lambda: None
        self.lose_answer = False  # of the next commit, which is made

    def add(self, name: str, private: bool = True, tree: Tree | None = None) -> Repository:
        self.repositories[name] = made = Repository(private)
        made.commit("main", tree or {".gitattributes": b"x\n"}, "initial commit")
        return made

    @property
    def commits(self) -> int:
        return sum(len(repository.trees) - 1 for repository in self.repositories.values())

    def wrote(self) -> list[str]:
        """Requests that change something."""
        quiet = ("/preupload/", "/paths-info/", "/validate-yaml")
        made = [r for r in self.requests if not r.startswith(("GET", "HEAD"))]
        return [r for r in made if not any(q in r for q in quiet)]

    @contextmanager
    def serving(self) -> Iterator[MiniHub]:
        hub = self

        class Bound(_Handler):
            pass

        Bound.hub = hub
        server = ThreadingHTTPServer(("127.0.0.1", 0), Bound)
        self.url = f"http://127.0.0.1:{server.server_address[1]}"
        thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
        thread.start()
        try:
            yield self
        finally:
            server.shutdown()
            server.server_close()


def talking_to(hub: MiniHub, monkeypatch: pytest.MonkeyPatch, place: Path) -> None:
    """What the environment would say, had it been there when huggingface_hub was imported."""
    import huggingface_hub.utils._http as http
    from huggingface_hub import constants

    for name, value in {
        "HF_HUB_OFFLINE": False,
        "HF_HUB_DISABLE_XET": True,
        "ENDPOINT": hub.url,
        "HUGGINGFACE_CO_URL_TEMPLATE": hub.url + "/{repo_id}/resolve/{revision}/{filename}",
        "HF_HUB_CACHE": str(place / "hf"),
    }.items():
        monkeypatch.setattr(constants, name, value)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    monkeypatch.setattr(http, "time", SimpleNamespace(sleep=lambda seconds: None))


class _Handler(BaseHTTPRequestHandler):
    hub: MiniHub
    protocol_version = "HTTP/1.1"
    wbufsize = 1 << 16  # head and body in one packet: else each answer takes 40 ms

    def log_message(self, *args: Any) -> None:
        pass

    def _any(self) -> None:
        length = int(self.headers.get("Content-Length") or 0)
        self.body = self.rfile.read(length)
        path = urlsplit(self.path).path
        self.hub.requests.append(f"{self.command} {path}")
        self.hub.headers.append(str(self.headers))
        status = self.hub.fault(self.command, path)
        if status == CUT:
            self.close_connection = True
            self.connection.close()
        elif status is not None:
            self.answer(status, {"error": f"fault {status}"})
        else:
            self.route([unquote(part) for part in path.strip("/").split("/")])

    do_GET = do_POST = do_PUT = do_HEAD = _any

    def answer(self, status: int, document: Any, **headers: str) -> None:
        data = json.dumps(document).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        self.wfile.write(data)

    def missing(self, code: str) -> None:
        self.answer(404, {"error": "not found"}, X_Error_Code=code)

    def route(self, parts: list[str]) -> None:
        match parts:
            case ["api", "repos", "create"]:
                self.create(json.loads(self.body))
            case ["api", "validate-yaml"]:
                self.answer(200, {"errors": [], "warnings": []})
            case ["api", "models", owner, name, *rest]:
                self.in_repository(f"{owner}/{name}", rest)
            case [owner, name, "info", "lfs", "objects", "batch"]:
                self.batch(json.loads(self.body))
            case ["upload", oid]:
                self.hub.blobs[oid] = self.body
                self.answer(200, {})
            case [owner, name, "resolve", revision, *path]:
                self.resolve(f"{owner}/{name}", revision, "/".join(path))
            case _:
                self.missing("RepoNotFound")

    def create(self, wanted: dict[str, Any]) -> None:
        name = f"{wanted.get('organization') or 'me'}/{wanted['name']}"
        url = f"{self.hub.url}/{name}"
        if name in self.hub.repositories:
            self.answer(409, {"error": "You already created this repo", "url": url})
            return
        private = wanted.get("visibility") == "private" or bool(wanted.get("private"))
        self.hub.add(name, private)
        self.answer(200, {"url": url})

    def in_repository(self, name: str, rest: list[str]) -> None:
        repository = self.hub.repositories.get(name)
        if repository is None:
            self.missing("RepoNotFound")
            return
        if repository.gated:
            self.answer(403, {"error": "ask for access"}, X_Error_Code="GatedRepo")
            return
        match rest:
            case [] | ["revision", _]:
                self.info(name, repository, rest[1] if rest else "main")
            case ["tree", revision, *_]:
                self.listing(repository, revision, None)
            case ["paths-info", revision]:
                wanted = parse_qs(self.body.decode()).get("paths", [])
                self.listing(repository, revision, wanted)
            case ["preupload", revision]:
                self.preupload(repository, revision)
            case ["branch", branch]:
                repository.branches[branch] = repository.branches["main"]
                self.answer(200, {})
            case ["commit", branch]:
                self.commit(name, repository, branch)
            case _:
                self.missing("EntryNotFound")

    def info(self, name: str, repository: Repository, revision: str) -> None:
        commit = repository.branches.get(revision, revision)
        if commit not in repository.trees:
            self.missing("RevisionNotFound")
            return
        siblings = [{"rfilename": path} for path in repository.trees[commit]]
        facts = {"id": name, "sha": commit, "private": repository.private, "siblings": siblings}
        self.answer(200, facts)

    def entry(self, path: str, data: bytes) -> dict[str, Any]:
        oid = hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()
        entry = {"type": "file", "path": path, "size": len(data), "oid": oid}
        if path.endswith(self.hub.large):
            sha = hashlib.sha256(data).hexdigest()
            entry["lfs"] = {"oid": sha, "size": len(data), "pointerSize": 134}
        return entry

    def listing(self, repository: Repository, revision: str, wanted: list[str] | None) -> None:
        if repository.branches.get(revision, revision) not in repository.trees:
            self.missing("RevisionNotFound")
            return
        tree = repository.tree(revision)
        found = [self.entry(p, d) for p, d in tree.items() if wanted is None or p in wanted]
        self.answer(200, found)

    def preupload(self, repository: Repository, revision: str) -> None:
        names = [file["path"] for file in json.loads(self.body)["files"]]
        modes = {n: "lfs" if n.endswith(self.hub.large) else "regular" for n in names}
        files = [{"path": n, "uploadMode": modes[n], "shouldIgnore": False} for n in names]
        self.answer(200, {"files": files})

    def batch(self, wanted: dict[str, Any]) -> None:
        objects = []
        for item in wanted["objects"]:
            entry = {"oid": item["oid"], "size": item["size"]}
            if item["oid"] not in self.hub.blobs:
                href = f"{self.hub.url}/upload/{item['oid']}?X-Signature=verysecret"
                entry["actions"] = {"upload": {"href": href}}
            objects.append(entry)
        self.answer(200, {"transfer": "basic", "objects": objects})

    def commit(self, name: str, repository: Repository, branch: str) -> None:
        self.hub.before_commit()
        lines = [json.loads(line) for line in self.body.splitlines()]
        header = next(line["value"] for line in lines if line["key"] == "header")
        head = repository.branches.get(branch, "")
        if header.get("parentCommit") not in (None, head):
            self.answer(412, {"error": "A commit has happened since."})
            return
        tree = dict(repository.trees[head])
        for line in lines:
            value = line["value"]
            if line["key"] == "file":
                tree[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                tree[value["path"]] = self.hub.blobs[value["oid"]]
            elif line["key"] == "deletedFile":
                del tree[value["path"]]
        pull = "create_pr" in urlsplit(self.path).query
        target = "refs/pr/1" if pull else branch
        made = repository.commit(target, tree, header["summary"], base=head)
        if self.hub.lose_answer:
            self.hub.lose_answer = False
            self.close_connection = True
            self.connection.close()
            return
        url = f"{self.hub.url}/{name}"
        answer = {"commitOid": made, "commitUrl": f"{url}/commit/{made}"}
        if pull:
            answer["pullRequestUrl"] = f"{url}/discussions/1"
        self.answer(200, answer)

    def resolve(self, name: str, revision: str, path: str) -> None:
        repository = self.hub.repositories.get(name)
        if repository is None:
            self.missing("RepoNotFound")
            return
        commit = repository.branches.get(revision, revision)
        data = repository.trees[commit].get(path)
        if data is None:
            self.missing("EntryNotFound")
            return
        self.send_response(200)
        self.send_header("X-Repo-Commit", commit)
        self.send_header("ETag", f'"{hashlib.sha256(data).hexdigest()}"')
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(data)
