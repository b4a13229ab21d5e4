"""What all handlers share: the registry's store, the hub's state, settings, the signing key."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from starlette.requests import Request

    from adapterhub.registry import Registry


@dataclass(frozen=True)
class Settings:
    """`url` fixes the address in links; without it, it is the one that the client used."""

    url: str = ""
    behind_proxy: bool = False
    public_read: bool = False


@dataclass
class Service:
    registry: Registry
    settings: Settings = field(default_factory=Settings)

    def url(self, request: Request) -> str:
        """The address that the client used, for links that it follows."""
        if self.settings.url:
            return self.settings.url.rstrip("/")
        scheme = request.url.scheme
        host = request.headers.get("host") or request.url.netloc
        if self.settings.behind_proxy:
            scheme = request.headers.get("x-forwarded-proto", scheme).split(",")[0].strip()
            host = request.headers.get("x-forwarded-host", host).split(",")[0].strip()
        return f"{scheme}://{host}"
