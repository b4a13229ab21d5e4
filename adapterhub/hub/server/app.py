"""The ASGI application: route, call the handler, turn errors into what clients understand."""

from __future__ import annotations

import secrets
from collections.abc import Iterable

from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from adapterhub.errors import AdapterHubError
from adapterhub.hub.server import replies
from adapterhub.hub.server.call import Call
from adapterhub.hub.server.routing import Match, Route, Router
from adapterhub.hub.server.service import Service


class App:
    """Raises nothing: what is no error of ours is logged, and answered with 500 and no detail."""

    def __init__(self, service: Service, routes: Iterable[Route]) -> None:
        self.service = service
        self._router = Router(routes)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        request = Request(scope, receive)
        call_id = secrets.token_hex(8)
        try:
            response = await self._answer(request, call_id)
        except ClientDisconnect:
            return
        response.headers["X-Request-Id"] = call_id
        await response(scope, receive, send)

    async def _answer(self, request: Request, call_id: str) -> Response:
        try:
            found = self._router.find(request.method, request.scope["raw_path"])
            if not isinstance(found, Match):
                return _nothing_there(request.method, found)
            return await found.handler(Call(self.service, request, found.params, call_id))
        except AdapterHubError as error:
            return replies.of_error(error)


def _nothing_there(method: str, allowed: tuple[str, ...]) -> Response:
    if allowed:
        return replies.plain_error(405, f"no {method} here", Allow=", ".join(allowed))
    return replies.plain_error(404, "there is nothing at this address")
