"""Connections that keep the server waiting: none holds a place for ever, and there is always one.

uvicorn waits without end for a request's first bytes, and for a client that does not read. Here a
request's headers arrive within HEADER_SECONDS of the first byte (or of the connection), what was
sent is taken within SENT_SECONDS, and where connections run out, the one that has been silent for
the longest makes room.
"""

from __future__ import annotations

import asyncio
import logging
import resource
from typing import TYPE_CHECKING, Any

from adapterhub.hub.server import logs

if TYPE_CHECKING:
    from uvicorn.protocols.http.h11_impl import H11Protocol as Base
else:
    Base = object

HEADER_SECONDS = 30.0
SENT_SECONDS = 300.0  # for half a megabyte: what is in one piece of a download
MOST_FILES = 65_536
MOST = 4096
FILES_EACH = 3  # a connection, what it reads, what it writes


def room() -> int:
    """How many connections there may be, once this process may open all the files it can."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = MOST_FILES if hard == resource.RLIM_INFINITY else min(hard, MOST_FILES)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
        soft = wanted
    return MOST if soft == resource.RLIM_INFINITY else max(16, min(MOST, soft // FILES_EACH))


class Guarded(Base):
    """Goes before uvicorn's protocol among the bases of a class; `most` connections in all."""

    most: int = MOST
    _silent: dict[Guarded, None] = {}  # noqa: RUF012  # those without a request, the oldest first
    _headers_timer: asyncio.TimerHandle | None = None
    _sent_timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        self._silent[self] = None
        self._headers_timer = self.loop.call_later(HEADER_SECONDS, self._give_up)
        if len(self.connections) > self.most:
            next(iter(self._silent))._give_up()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        self._watch()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        self._watch()

    def _watch(self) -> None:
        if self.cycle is not None and not self.cycle.response_complete:
            self._silent.pop(self, None)
            self._stop_waiting()
        elif not self.transport.is_closing():
            self._silent.setdefault(self)
            idle = self.timeout_keep_alive_task is not None
            if self._headers_timer is None and not idle and not self._still_sends():
                self._headers_timer = self.loop.call_later(HEADER_SECONDS, self._give_up)

    def _still_sends(self) -> bool:
        """The rest of a body that was answered already: its client looks for the answer then."""
        return str(self.conn.their_state) == "SEND_BODY"

    def _stop_waiting(self) -> None:
        if self._headers_timer is not None:
            self._headers_timer.cancel()
            self._headers_timer = None

    def pause_writing(self) -> None:
        super().pause_writing()
        self._sent_timer = self.loop.call_later(SENT_SECONDS, self._give_up)

    def resume_writing(self) -> None:
        super().resume_writing()
        self._stop_sending()

    def _stop_sending(self) -> None:
        if self._sent_timer is not None:
            self._sent_timer.cancel()
            self._sent_timer = None

    def _give_up(self) -> None:
        """Without a word: who has not asked, or does not read, gets no answer."""
        client = self.client[0] if self.client else None
        logs.event(logging.INFO, "given up", client=client, silent=self in self._silent)
        self._silent.pop(self, None)
        self.transport.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        self._silent.pop(self, None)
        self._stop_waiting()
        self._stop_sending()
        super().connection_lost(exc)


def protocol(base: type[Any], most: int) -> type[Any]:
    """The protocol of one server."""
    return type("Guarded", (Guarded, base), {"most": most, "_silent": {}})
