"""A hub in a thread of this process, so that tests can look at its state too."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import uvicorn
from wire import Answer, Wire

from adapterhub.hub.server import serving
from adapterhub.hub.server.app import App
from adapterhub.hub.server.routes import ROUTES
from adapterhub.hub.server.routing import Route
from adapterhub.hub.server.service import Service, Settings
from adapterhub.hub.state.names import parse_id
from adapterhub.hub.state.operations import Add, Delete, DeleteFolder, Operation, Request
from adapterhub.hub.state.repositories import Repository
from adapterhub.hub.state.state import Hub
from adapterhub.registry import Registry

JSON = {"Content-Type": "application/json"}


@dataclass
class Served:
    url: str
    service: Service

    @property
    def hub(self) -> Hub:
        return self.service.hub

    @property
    def registry(self) -> Registry:
        return self.service.registry

    def secret(self, role: str = "write", *namespaces: str, label: str = "ann", **more: Any) -> str:
        return self.hub.tokens.create(label, role, namespaces or ("*",), **more)[1]

    def wire(self, role: str = "write", *namespaces: str) -> Wire:
        return Wire(self.url, self.secret(role, *namespaces))

    def anonymous(self) -> Wire:
        return Wire(self.url)

    def repo(
        self, id: str, files: Mapping[str, bytes] | None = None, *, private: bool = False
    ) -> Repository:
        """A new model repository, with a commit of `files`."""
        repository = self.hub.create(parse_id(id), private=private)
        if files:
            self.commit(repository, files)
        return self.hub.repositories.again(repository)

    def commit(
        self,
        repository: Repository,
        files: Mapping[str, bytes | None],
        revision: str = "main",
        title: str = "a commit",
    ) -> str:
        """Its id. None deletes a file, `folder/` a folder; what ends in .safetensors is LFS."""
        operations: list[Operation] = []
        for path, data in files.items():
            if data is None:
                operations.append(
                    DeleteFolder(path) if path.endswith("/") else Delete(path),
                )
                continue
            digest = self.hub.contents.put_bytes(repository, data).digest
            operations.append(Add(path, digest, lfs=path.endswith(".safetensors")))
        request = Request(tuple(operations), title)
        made = self.hub.commit(repository, revision, request, "ann")
        if revision == "main":
            self.index()
        return made.commit.id

    def index(self) -> None:
        """Waits until the index is up to date."""
        number = self.service.indexer.tell()
        end = time.monotonic() + 10
        while not self.service.indexer.has_seen(number):
            assert time.monotonic() < end, "the indexer hangs"
            time.sleep(0.002)


@contextmanager
def running(home: Path, routes: tuple[Route, ...] = ROUTES, **settings: Any) -> Iterator[Served]:
    with (
        Registry(home) as registry,
        Service.opened(registry, Settings(**settings)) as service,
        serving.listening("127.0.0.1", 0) as listener,
    ):
        config = uvicorn.Config(
            App(service, routes), http="h11", ws="none", lifespan="off", log_config=None
        )
        server = uvicorn.Server(config)
        thread = threading.Thread(target=server.run, args=([listener],))
        thread.start()
        try:
            yield Served(serving.address(listener), service)
        finally:
            server.should_exit = True
            thread.join(20)
            assert not thread.is_alive()


def files_of(directory: Path, prefix: str = "") -> dict[str, bytes]:
    return {f"{prefix}{path.name}": path.read_bytes() for path in sorted(directory.iterdir())}


def ok(answer: Answer) -> Any:
    assert answer.status == 200, (answer.status, answer.body)
    return answer.json
