"""One request: who asks, for what, and the few ways in which handlers read it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import IO, TYPE_CHECKING, Any, ParamSpec, TypeVar
from urllib.parse import parse_qs

from starlette.concurrency import run_in_threadpool
from starlette.requests import Request

from adapterhub import strictjson
from adapterhub.errors import InvalidOption
from adapterhub.hub.server import bodies, signin
from adapterhub.hub.state.errors import RepoNotFound
from adapterhub.hub.state.model import Caller
from adapterhub.hub.state.names import RepoId, parse_id
from adapterhub.hub.state.repositories import Repository

if TYPE_CHECKING:
    from adapterhub.hub.server.service import Service
    from adapterhub.hub.state.state import Hub

P = ParamSpec("P")
T = TypeVar("T")
JSON_LIMIT = 4 * 1024 * 1024
FORM_FIELDS = 10_000
KINDS = {"models": "model", "datasets": "dataset", "spaces": "space"}


@dataclass
class Call:
    """`params` come from the route's template, unquoted. Handlers run on the event loop: whatever
    reads a disk or the database goes through `thread`, or `change`, or `heavy`.
    """

    service: Service
    request: Request
    params: Mapping[str, str]
    id: str
    notes: dict[str, Any] = field(default_factory=dict)  # more fields of the access log's line
    _caller: Caller | None = None

    async def thread(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        return await run_in_threadpool(function, *args, **kwargs)

    async def change(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """As `thread`, for what changes hub.db: it waits in line, and not in a thread."""
        async with self.service.load.writing:
            return await run_in_threadpool(function, *args, **kwargs)

    async def heavy(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """As `thread`, for what keeps a core busy: only few of these run at a time."""
        async with self.service.load.heavy:
            return await run_in_threadpool(function, *args, **kwargs)

    # --- who asks, and for which repository

    @property
    def hub(self) -> Hub:
        return self.service.hub

    async def who(self) -> Caller:
        """ANONYMOUS without a token. Raises Unauthorized for one that is not (or no more) ours."""
        if self._caller is None:
            header = self.request.headers.get("authorization")
            self._caller = await self.thread(signin.caller, self.hub.tokens, header)
            if self._caller.token is not None:
                self.notes["token"] = self._caller.token.id
        return self._caller

    async def signed_in(self, what: str = "this address") -> Caller:
        """As `who`. Raises Unauthorized without a token; `what` is what needs one."""
        caller = await self.who()
        if caller.token is None:
            raise signin.sign_in_first(what)
        return caller

    @property
    def kind(self) -> str:
        """model, dataset or space; model where the address does not say."""
        return KINDS[self.params.get("kind", "models")]

    @property
    def repo_id(self) -> RepoId:
        """What `{kind}` and `{repo}` of the template mean. Raises RepoNotFound for what is no id:
        a mistyped id is a missing repository, not a fault of the client.
        """
        try:
            return parse_id(self.params["repo"], self.kind)
        except InvalidOption as error:
            raise RepoNotFound(error.message, remedy=error.remedy) from error

    async def visible(self) -> Repository:
        """To show that it exists, its card and file names; gated ones too. Raises RepoNotFound."""
        return await self._access(self.hub.access.see)

    async def readable(self) -> Repository:
        """To hand out contents. Raises RepoNotFound, GatedRepo."""
        return await self._access(self.hub.access.read)

    async def writable(self) -> Repository:
        """Raises RepoNotFound, Unauthorized, Forbidden."""
        return await self._access(self.hub.access.write)

    async def _access(self, ask: Callable[[Caller, RepoId], Repository]) -> Repository:
        caller = await self.who()
        try:
            return await self.thread(ask, caller, self.repo_id)
        except RepoNotFound as error:
            raise signin.for_caller(error, caller) from error

    @property
    def rev(self) -> str:
        """The template's `{rev}`; main where it has none."""
        return self.params.get("rev") or "main"

    async def moved(self) -> None:
        """To be awaited after a branch moved: the index follows the main branches. It waits a
        moment, so that who pushes a small adapter finds it listed at once.
        """
        await self.service.moved()

    # --- query, body

    def query(self, name: str, default: str = "") -> str:
        return self.request.query_params.get(name, default)

    def queries(self, name: str) -> tuple[str, ...]:
        """Every value of a repeated parameter, as `name` or `name[]`."""
        params = self.request.query_params
        return (*params.getlist(name), *params.getlist(f"{name}[]"))

    def flag(self, name: str) -> bool:
        """Clients write `true`, `True` or `1`."""
        return self.query(name).lower() in ("true", "1")

    def number(self, name: str, default: int, most: int, least: int = 1) -> int:
        """`most` where it is more. Raises InvalidOption."""
        text = self.query(name)
        if not text:
            return default
        if not text.isascii() or not text.isdigit() or int(text[:9]) < least:
            raise InvalidOption(
                f"{name} is {text[:40]!a}", remedy=f"give a whole number from {least}"
            )
        return min(int(text[:9]), most)

    @property
    def url(self) -> str:
        """Where the client reached this server: `http://host:port`, without a slash at the end."""
        return self.service.url(self.request)

    async def body(self, limit: int = JSON_LIMIT) -> bytes:
        """All of it. Raises TooLarge beyond `limit` bytes, Stalled."""
        async with bodies.spooled(self, limit) as (file, _):
            return await self.thread(file.read)

    async def json(self, limit: int = JSON_LIMIT) -> dict[str, Any]:
        """The body, a JSON object; an empty body is an empty object. Raises InvalidOption.

        Parsing a large one takes seconds and a lot of memory, so few are parsed at a time.
        """
        async with bodies.spooled(self, limit) as (file, size):
            if size <= bodies.SMALL:
                document = _document(file)
            else:
                document = await self.heavy(_document, file)
        if document is None:  # clients without anything to say send `null`
            return {}
        if not isinstance(document, dict):
            raise InvalidOption("the body is no JSON object", remedy="send a JSON object")
        return document

    async def form(self, limit: int = JSON_LIMIT) -> dict[str, list[str]]:
        """A form-encoded body. Raises InvalidOption."""
        data = await self.body(limit)
        try:
            return parse_qs(data.decode("ascii"), True, errors="strict", max_num_fields=FORM_FIELDS)
        except ValueError as error:
            raise InvalidOption(
                f"the body is no form: {error}", remedy=f"send at most {FORM_FIELDS} fields"
            ) from error


def _document(file: IO[bytes]) -> Any:
    data = file.read()
    try:
        return strictjson.loads(data) if data.strip() else {}
    except ValueError as error:
        raise InvalidOption(
            f"the body is not JSON: {error}", remedy="send a JSON object"
        ) from error
