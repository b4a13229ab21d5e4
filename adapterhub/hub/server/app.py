"""The ASGI application: route, call the handler, turn errors into what clients understand."""

from __future__ import annotations

import asyncio
import secrets
import traceback
from collections.abc import Iterable

from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from adapterhub.errors import AdapterHubError
from adapterhub.hub.server import logs, replies
from adapterhub.hub.server.call import Call
from adapterhub.hub.server.exchange import Exchange
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
        exchange = Exchange(scope, receive, send, secrets.token_hex(8))
        self.service.metrics.began()
        try:
            await self._serve(exchange)
        except ClientDisconnect:
            exchange.notes["cut_off"] = "the client went away"
        except asyncio.CancelledError:
            exchange.notes["cut_off"] = "the server stops"
            raise
        except Exception as error:
            logs.failure("broken answer", error, id=exchange.id, route=exchange.template)
            raise  # the connection is closed, so that no half answer looks whole
        finally:
            exchange.close(self.service.metrics)

    async def _serve(self, exchange: Exchange) -> None:
        request = Request(exchange.scope, exchange.receive)
        response = await self._answer(request, exchange)
        response.headers["X-Request-Id"] = exchange.id
        if response.status_code >= 400:
            await exchange.drain()
        await response(exchange.scope, exchange.receive, exchange.send)

    async def _answer(self, request: Request, exchange: Exchange) -> Response:
        try:
            found = self._router.find(request.method, request.scope["raw_path"])
            if not isinstance(found, Match):
                return _nothing_there(request.method, found)
            exchange.template = found.template
            call = Call(self.service, request, found.params, exchange.id, exchange.notes)
            return await found.handler(call)
        except AdapterHubError as error:
            return self._refused(error, exchange)
        except (ClientDisconnect, asyncio.CancelledError):
            raise
        except Exception as error:
            logs.failure("error", error, id=exchange.id, route=exchange.template)
            return replies.plain_error(500, f"internal error; the log has it as {exchange.id}")

    def _refused(self, error: AdapterHubError, exchange: Exchange) -> Response:
        response = replies.of_error(error)
        if response.status_code >= 500:
            logs.failure("error", error, id=exchange.id, route=exchange.template)
        exchange.notes["error"] = logs.untold(error.message[:500])
        _forget_locals(error)
        return response


def _forget_locals(error: BaseException | None) -> None:
    """An error and the functions that it went through keep each other alive for a while, and with
    them a body of 64 MiB.
    """
    seen: set[int] = set()
    while error is not None and id(error) not in seen:  # one may be its own cause
        seen.add(id(error))
        traceback.clear_frames(error.__traceback__)
        error = error.__cause__ or error.__context__


def _nothing_there(method: str, allowed: tuple[str, ...]) -> Response:
    if allowed:
        return replies.plain_error(405, f"no {method} here", Allow=", ".join(allowed))
    return replies.plain_error(404, "there is nothing at this address")
