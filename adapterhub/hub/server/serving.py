"""The server as a process: its socket, its start and its end."""

from __future__ import annotations

import errno
import importlib.util
import ipaddress
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from adapterhub.errors import InvalidOption, MissingExtra
from adapterhub.hub.server.logs import LEVELS
from adapterhub.hub.state.limits import Limits

if TYPE_CHECKING:
    from adapterhub.hub.server.app import App
    from adapterhub.hub.state.state import Hub
    from adapterhub.registry import Registry

NEEDS = ("starlette", "uvicorn", "lz4", "blake3")
HEADER_BYTES = 64 * 1024  # of a request's first line and headers together
KEEP_ALIVE_SECONDS = 75


@dataclass(frozen=True)
class Options:
    """`port` 0 takes a free one. `url` and `behind_proxy`: see `service.Settings`.

    `public_read`: other machines, too, read public repositories without a token. On loopback
    anybody does. `grace`: seconds that running requests have when the server is told to stop.
    `limits`: how much a repository takes.
    """

    host: str = "127.0.0.1"
    port: int = 8080
    public_read: bool = False
    url: str = ""
    behind_proxy: bool = False
    log_level: str = "info"
    grace: int = 20
    limits: Limits = field(default_factory=Limits)

    def __post_init__(self) -> None:
        if not 0 <= self.port < 65536:
            raise InvalidOption(f"there is no port {self.port}", remedy="--port N, of 0 to 65535")
        if self.log_level not in LEVELS:
            raise InvalidOption(
                f"there is no log level {self.log_level!a}", remedy=f"one of {', '.join(LEVELS)}"
            )
        parts = urlsplit(self.url)
        if self.url and not (parts.scheme in ("http", "https") and parts.netloc):
            raise InvalidOption(
                f"{self.url!a} is no address of a hub", remedy="--url https://hub.example.org"
            )


def serve(registry: Registry, options: Options, on_start: Callable[[str], None]) -> None:
    """Until SIGTERM or SIGINT. `on_start` is given the server's address once it can be reached.

    Raises MissingExtra, InvalidOption for an address that is taken or that nobody without a token
    may be let in at, StoreError.
    """
    check_extra()
    from adapterhub.hub.server import logs
    from adapterhub.hub.server.app import App
    from adapterhub.hub.server.routes import ROUTES
    from adapterhub.hub.server.service import Service, Settings

    with listening(options.host, options.port) as listener:
        near = is_loopback(listener)
        public = options.public_read or near
        settings = Settings(options.url, options.behind_proxy, public, options.limits)
        logs.configure(options.log_level)
        with Service.opened(registry, settings) as service:
            if not near:
                require_token(service.hub, options.host)
            on_start(options.url or address(listener))
            run(App(service, ROUTES), listener, options.grace)


def check_extra() -> None:
    """Raises MissingExtra."""
    for package in NEEDS:
        if importlib.util.find_spec(package) is None:
            raise MissingExtra(package, "server", "adapterhub serve")


@contextmanager
def listening(host: str, port: int) -> Iterator[socket.socket]:
    """A socket that takes connections. Raises InvalidOption where the address cannot be had."""
    try:
        family, kind, protocol, _, place = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
    except (OSError, UnicodeError) as error:
        raise InvalidOption(
            f"{host[:100]!a} is no address of this machine", remedy="--host 127.0.0.1"
        ) from error
    with socket.socket(family, kind, protocol) as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind(place)
            listener.listen(1024)
        except OSError as error:
            raise _cannot_listen(host, port, error) from error
        listener.setblocking(False)
        yield listener


def _cannot_listen(host: str, port: int, error: OSError) -> InvalidOption:
    if error.errno == errno.EADDRINUSE:
        return InvalidOption(
            f"port {port} of {host} is in use by another program",
            remedy="--port N takes another one, --port 0 any that is free",
        )
    return InvalidOption(
        f"cannot listen on {host} port {port}: {error.strerror}",
        remedy="--host 127.0.0.1, and a port above 1023",
    )


def is_loopback(listener: socket.socket) -> bool:
    """Whether only this machine can reach it."""
    host = str(listener.getsockname()[0])
    return ipaddress.ip_address(host.partition("%")[0]).is_loopback


def address(listener: socket.socket) -> str:
    """`http://127.0.0.1:8080`; of a socket on all addresses, with this machine's name."""
    host, port = listener.getsockname()[:2]
    found = ipaddress.ip_address(str(host).partition("%")[0])
    shown = f"[{found}]" if found.version == 6 else str(found)
    return f"http://{socket.gethostname() if found.is_unspecified else shown}:{port}"


def require_token(hub: Hub, host: str) -> None:
    """Raises InvalidOption where nobody has a token that is valid."""
    now = time.time()
    if any(t.revoked is None and (t.expires is None or t.expires > now) for t in hub.tokens.list()):
        return
    raise InvalidOption(
        f"other machines can reach {host}, and no token exists with which to sign in",
        remedy="make one first: adapterhub token create NAME --write",
    )


def run(app: App, listener: socket.socket, grace: int) -> None:
    """Serves until it is told to stop; then requests have `grace` seconds to end."""
    import uvicorn
    from uvicorn.protocols.http.h11_impl import H11Protocol

    from adapterhub.hub.server import connections

    config = uvicorn.Config(
        app,
        http=connections.protocol(H11Protocol, connections.room()),
        ws="none",
        lifespan="off",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        timeout_keep_alive=KEEP_ALIVE_SECONDS,
        timeout_graceful_shutdown=grace,
        h11_max_incomplete_event_size=HEADER_BYTES,
    )
    with _ends_quietly():
        uvicorn.Server(config).run(sockets=[listener])


@contextmanager
def _ends_quietly() -> Iterator[None]:
    """uvicorn raises the signal that stopped it once more: the process would die of it."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    stops = (signal.SIGINT, signal.SIGTERM)
    before = {each: signal.signal(each, lambda *_: None) for each in stops}
    try:
        yield
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)
