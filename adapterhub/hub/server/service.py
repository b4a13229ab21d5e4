"""What all handlers share: the registry's store, the hub's state, settings, counters."""

from __future__ import annotations

import asyncio
import re
import time
from dataclasses import dataclass, field
from types import TracebackType
from typing import TYPE_CHECKING, Self

from adapterhub.hub.server.indexing import Indexer
from adapterhub.hub.server.load import Load
from adapterhub.hub.server.metrics import Metrics
from adapterhub.hub.server.transfers import Transfers
from adapterhub.hub.state.limits import Limits
from adapterhub.hub.state.state import Hub

if TYPE_CHECKING:
    from starlette.requests import Request

    from adapterhub.registry import Registry

MOMENT_SECONDS = 0.5
_HOST = re.compile(r"[A-Za-z0-9._~%\[\]:-]{1,255}")


@dataclass(frozen=True)
class Settings:
    """`url` fixes the address in links; without it, it is the one that the client used.

    `behind_proxy`: X-Forwarded-Proto and -Host are believed. `public_read`: requests without a
    token may read public repositories.
    """

    url: str = ""
    behind_proxy: bool = False
    public_read: bool = True
    limits: Limits = field(default_factory=Limits)


@dataclass
class Service:
    """`hub` is made with the same `public_read` as the settings; see `opened`."""

    registry: Registry
    hub: Hub
    settings: Settings
    indexer: Indexer
    metrics: Metrics = field(default_factory=Metrics)
    load: Load = field(default_factory=Load)
    transfers: Transfers = field(init=False)

    def __post_init__(self) -> None:
        self.transfers = Transfers.opened(self.registry.store)

    @classmethod
    def opened(cls, registry: Registry, settings: Settings) -> Service:
        """Over the registry's own store; hub.db is made where it does not exist."""
        hub = Hub(registry.store, settings.limits, public_read=settings.public_read)
        service = cls(registry, hub, settings, Indexer(registry, hub))
        service.indexer.start()
        return service

    def close(self) -> None:
        """The registry stays open: it is the caller's."""
        self.indexer.close()
        self.hub.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    async def moved(self) -> None:
        """See `Call.moved`."""
        number = self.indexer.tell()
        until = time.monotonic() + MOMENT_SECONDS
        while not self.indexer.has_seen(number) and time.monotonic() < until:
            await asyncio.sleep(0.01)

    def url(self, request: Request) -> str:
        """The address that the client used, for links that it follows."""
        if self.settings.url:
            return self.settings.url.rstrip("/")
        scheme, host = request.scope["scheme"], request.headers.get("host", "")
        if self.settings.behind_proxy:
            scheme = _first(request.headers.get("x-forwarded-proto", scheme))
            host = _first(request.headers.get("x-forwarded-host", host))
        if not _HOST.fullmatch(host):
            host = "{}:{}".format(*(request.scope.get("server") or ("localhost", 80)))
        return f"{'https' if scheme == 'https' else 'http'}://{host}"


def _first(header: str) -> str:
    return header.split(",")[0].strip()
