"""Create, delete, move and configure repositories."""

from __future__ import annotations

from typing import Any

from starlette.responses import Response

from adapterhub.errors import NotSupported
from adapterhub.hub.server import replies, signin
from adapterhub.hub.server.call import Call
from adapterhub.hub.server.identity import own_namespace
from adapterhub.hub.server.routing import Route
from adapterhub.hub.state.errors import Conflict, InvalidRequest, RepoNotFound
from adapterhub.hub.state.model import Caller
from adapterhub.hub.state.names import RepoId, parse_id
from adapterhub.hub.state.repositories import Repository

# `/api/models/NAME/refs` is the refs of NAME, so no repository of a namespace is called `refs`;
# and clients cut the address of a commit at `/commit/`.
_ADDRESSES = frozenset(("refs", "settings", "auth-check", "lfs-files", "discussions", "commit"))
_RUNS = ("hardware", "secrets", "variables", "volumes", "template", "sleepTimeSeconds")


async def create(call: Call) -> Response:
    said = await call.json()
    caller = await call.who()
    id = _named(said, caller)
    if wanted := [key for key in _RUNS if said.get(key)]:
        raise NotSupported(
            f"this hub keeps files and runs nothing, so {wanted[0]} cannot be given",
            remedy="create it without",
        )
    await call.thread(call.hub.access.create, caller, id)
    body = {"url": web_url(call, id), "name": str(id)}
    private = _privacy(said)
    try:
        made = await call.change(call.hub.create, id, private=private is not False)
    except Conflict as error:  # `exist_ok` reads the url of what is there
        return replies.of_error(error, body)
    call.notes["repository"] = str(made.id)
    return replies.as_json(body | {"id": str(made.key)})


async def delete(call: Call) -> Response:
    caller = await call.who()
    id = _named(await call.json(), caller)
    repository = await _write(call, caller, id)
    last = await call.change(call.hub.repositories.delete, repository)
    call.notes["repository"] = str(id)
    async with call.service.load.following:
        await call.thread(call.service.indexer.forget, last)
    await call.thread(call.service.transfers.xorbs.forget, str(repository.key))
    return replies.as_json({})


async def move(call: Call) -> Response:
    said = await call.json()
    caller = await call.who()
    kind = _kind(said)
    old, new = parse_id(said.get("fromRepo"), kind), _checked(parse_id(said.get("toRepo"), kind))
    repository = await _write(call, caller, old)
    await call.thread(call.hub.access.create, caller, new)
    moved = await call.change(call.hub.repositories.move, repository, new)
    call.notes["repository"] = f"{old} > {new}"
    async with call.service.load.following:
        await call.thread(call.service.indexer.follow, moved)
    return replies.as_json({"url": web_url(call, new)})


async def configure(call: Call) -> Response:
    said = await call.json()
    repository = await call.writable()
    gated = said.get("gated")
    if gated not in (None, False, "auto", "manual"):
        raise InvalidRequest(f"gated is {str(gated)[:40]!a}", remedy="false, auto or manual")
    now = await call.change(
        call.hub.repositories.configure,
        repository,
        private=_privacy(said),
        gated=None if gated is None else gated or "",
    )
    return replies.as_json({"private": now.private, "gated": now.gated or False})


def web_url(call: Call, id: RepoId) -> str:
    """The repository's address as clients take it apart: `<endpoint>/datasets/ns/name`."""
    folder = "" if id.kind == "model" else f"{id.kind}s/"
    return f"{call.url}/{folder}{id}"


async def _write(call: Call, caller: Caller, id: RepoId) -> Repository:
    try:
        return await call.thread(call.hub.access.write, caller, id)
    except RepoNotFound as error:
        raise signin.for_caller(error, caller) from error


def _named(said: dict[str, Any], caller: Caller) -> RepoId:
    """`name`, `organization` and `type` of a body; older clients put the namespace in `name`."""
    name, namespace = said.get("name"), said.get("organization")
    if not isinstance(name, str) or not isinstance(namespace, str | None):
        raise InvalidRequest("name must be a text, organization one or null", remedy="send both")
    if namespace is None and "/" not in name:
        namespace = own_namespace(caller)
    return _checked(parse_id(f"{namespace}/{name}" if namespace else name, _kind(said)))


def _kind(said: dict[str, Any]) -> str:
    return str(said.get("type") or "model")


def _checked(id: RepoId) -> RepoId:
    if id.namespace and id.name.lower() in _ADDRESSES:
        raise InvalidRequest(
            f"{id} cannot be the id of a repository: the last part has a meaning in addresses",
            remedy="choose another name",
        )
    return id


def _privacy(said: dict[str, Any]) -> bool | None:
    """`visibility`, or `private` of older clients; None where neither is said."""
    visibility, private = said.get("visibility"), said.get("private")
    if visibility is not None and visibility not in ("public", "private"):
        raise InvalidRequest(f"visibility is {str(visibility)[:40]!a}", remedy="public or private")
    if visibility is not None:
        return bool(visibility == "private")
    return None if private is None else bool(private)


ROUTES = (
    Route("POST", "/api/repos/create", create),
    Route("DELETE", "/api/repos/delete", delete),
    Route("POST", "/api/repos/move", move),
    Route("PUT", "/api/{kind}/{repo}/settings", configure),
)
