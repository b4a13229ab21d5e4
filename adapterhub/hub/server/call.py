"""One request: who asks, for what, and the few ways in which handlers read it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

from starlette.concurrency import run_in_threadpool
from starlette.requests import Request

from adapterhub import strictjson
from adapterhub.errors import InvalidOption

if TYPE_CHECKING:
    from adapterhub.hub.server.service import Service

P = ParamSpec("P")
T = TypeVar("T")
JSON_LIMIT = 4 * 1024 * 1024
KINDS = {"models": "model", "datasets": "dataset", "spaces": "space"}


@dataclass
class Call:
    """`params` come from the route's template, unquoted. Handlers run on the event loop: whatever
    reads a disk or the database goes through `thread`.
    """

    service: Service
    request: Request
    params: Mapping[str, str]
    id: str
    notes: dict[str, Any] = field(default_factory=dict)  # more fields of the access log's line

    async def thread(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        return await run_in_threadpool(function, *args, **kwargs)

    @property
    def kind(self) -> str:
        """model, dataset or space; model where the address does not say."""
        return KINDS[self.params.get("kind", "models")]

    def query(self, name: str, default: str = "") -> str:
        return self.request.query_params.get(name, default)

    def flag(self, name: str) -> bool:
        """Clients write `true`, `True` or `1`."""
        return self.query(name).lower() in ("true", "1")

    def number(self, name: str, default: int, most: int) -> int:
        """At least 1. Raises InvalidOption."""
        text = self.query(name)
        if not text:
            return default
        if not text.isascii() or not text.isdigit() or not int(text[:9]) >= 1:
            raise InvalidOption(f"{name} is {text[:40]!a}", remedy="give a whole number from 1")
        return min(int(text[:9]), most)

    @property
    def url(self) -> str:
        """Where the client reached this server: `http://host:port`, without a slash at the end."""
        return self.service.url(self.request)

    async def body(self, limit: int = JSON_LIMIT) -> bytes:
        """All of it. Raises InvalidOption beyond `limit` bytes."""
        data = bytearray()
        async for piece in self.request.stream():
            data += piece
            if len(data) > limit:
                raise InvalidOption(
                    f"the request has more than {limit} bytes", remedy="send less at once"
                )
        return bytes(data)

    async def json(self, limit: int = JSON_LIMIT) -> dict[str, Any]:
        """The body, a JSON object; an empty body is an empty object. Raises InvalidOption."""
        data = await self.body(limit)
        try:
            document = strictjson.loads(data) if data.strip() else {}
        except ValueError as error:
            raise InvalidOption(
                f"the body is not JSON: {error}", remedy="send a JSON object"
            ) from error
        if not isinstance(document, dict):
            raise InvalidOption("the body is no JSON object", remedy="send a JSON object")
        return document
