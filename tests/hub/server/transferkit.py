"""A server in a thread of the test's own process, over a home of its own."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import uvicorn
from wire import Wire

from adapterhub.hub.server.app import App
from adapterhub.hub.server.routes import ROUTES
from adapterhub.hub.server.service import Service, Settings
from adapterhub.hub.state.names import parse_id
from adapterhub.hub.state.repositories import Repository
from adapterhub.registry import Registry


@dataclass(frozen=True)
class Place:
    """A running server, and one of its repositories. `wire` may write everywhere."""

    service: Service
    wire: Wire
    repo: str
    repository: Repository

    @property
    def public(self) -> Wire:
        return Wire(self.wire.url)

    def has(self, oid: str) -> bool:
        """Whether the content was delivered to the repository."""
        return self.service.hub.contents.find(self.repository, f"sha256:{oid}") is not None

    def left_behind(self) -> list[str]:
        """Temporary files; a request that was cut off may take a moment to be noticed."""
        folder = self.service.registry.store.home / "tmp"
        for _ in range(100):
            names = [path.name for path in folder.iterdir()]
            if not names:
                break
            time.sleep(0.02)
        return names

    def put(self, files: dict[str, bytes]) -> str:
        """Commits regular files; the commit's id."""
        import wire

        lines = [wire.regular(path, data) for path, data in files.items()]
        answer = self.wire.commit(self.repo, wire.header(), *lines)
        assert answer.status == 200, answer
        return str(answer.json["commitOid"])


@contextmanager
def running(service: Service) -> Iterator[str]:
    """The server's address."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        config = uvicorn.Config(App(service, ROUTES), http="h11", log_config=None, access_log=False)
        server = uvicorn.Server(config)
        thread = threading.Thread(target=server.run, args=([listener],))
        thread.start()
        try:
            while not server.started:
                assert thread.is_alive()
                time.sleep(0.005)
            yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        finally:
            server.should_exit = True
            thread.join(30)
    assert not thread.is_alive()


@contextmanager
def place(home: Path, repo: str = "ns/adapter") -> Iterator[Place]:
    with Registry(home) as registry, Service.opened(registry, Settings()) as service:
        repository = service.hub.create(parse_id(repo))
        _, secret = service.hub.tokens.create("test", "write")
        with running(service) as url:
            yield Place(service, Wire(url, secret), repo, repository)
