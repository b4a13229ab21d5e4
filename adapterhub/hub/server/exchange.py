"""One request and its answer, watched: bytes, status, time; the line in the access log."""

from __future__ import annotations

import asyncio
import logging
import time
from typing import Any

from starlette.types import Message, Receive, Scope, Send

from adapterhub.hub.server import logs
from adapterhub.hub.server.metrics import Metrics

DRAIN_BYTES = 32 * 1024 * 1024
DRAIN_SECONDS, IDLE_SECONDS = 10.0, 1.0


class Exchange:
    """`receive` and `send` stand for those of the server, and count. `notes` are more fields of
    the log's line.
    """

    def __init__(self, scope: Scope, receive: Receive, send: Send, id: str) -> None:
        self.scope, self.id = scope, id
        self.template = "unknown"
        self.notes: dict[str, Any] = {}
        self.status = self.received = self.sent = 0
        self._receive, self._send = receive, send
        self._began = time.monotonic()
        self._whole_request = self._whole_answer = False

    async def receive(self) -> Message:
        message = await self._receive()
        if message["type"] == "http.request":
            self.received += len(message.get("body", b""))
            self._whole_request = not message.get("more_body", False)
        return message

    async def send(self, message: Message) -> None:
        await self._send(message)
        if message["type"] == "http.response.start":
            self.status = message["status"]
        elif message["type"] == "http.response.body":
            self.sent += len(message.get("body", b""))
            self._whole_answer = not message.get("more_body", False)

    async def drain(self) -> None:
        """Reads on what the client still sends, within limits: many clients read no answer before
        they have sent everything, and a connection closed on them is an answer lost.
        """
        if self._whole_request or not self._has_body():
            return
        until, end = self.received + DRAIN_BYTES, time.monotonic() + DRAIN_SECONDS
        while not self._whole_request and self.received < until and time.monotonic() < end:
            try:
                async with asyncio.timeout(IDLE_SECONDS):
                    message = await self.receive()
            except TimeoutError:
                return
            if message["type"] == "http.disconnect":
                return

    def _has_body(self) -> bool:
        """Whether one is on its way: who sends `Expect` waits for us to ask for it."""
        headers = dict(self.scope["headers"])
        length = headers.get(b"content-length", b"0").strip()
        return b"expect" not in headers and (length != b"0" or b"transfer-encoding" in headers)

    def close(self, metrics: Metrics) -> None:
        seconds = time.monotonic() - self._began
        status = self.status if self._whole_answer else 0
        method = self.scope["method"]
        metrics.ended(
            method,
            self.template,
            status,
            seconds=seconds,
            received=self.received,
            sent=self.sent,
        )
        if not logs.LOGGER.isEnabledFor(logging.INFO):
            return
        client = self.scope.get("client")
        logs.event(
            logging.INFO,
            "request",
            id=self.id,
            client=client[0] if client else None,
            method=method,
            path=logs.path(self.scope["raw_path"].split(b"?")[0]),
            query=logs.masked(self.scope["query_string"]) or None,
            route=self.template,
            status=self.status if self._whole_answer or self.status else 0,
            ms=round(seconds * 1000, 1),
            received=self.received,
            sent=self.sent,
            **self.notes,
        )
