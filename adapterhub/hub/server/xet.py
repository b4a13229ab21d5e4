"""Xet over HTTP: tokens, xorbs and shards. What they mean is in `hub.xet`.

Clients that have `hf_xet` send large files this way only. They get an address of their own for
each repository and epoch, and a token that opens nothing else. Everything that is not here (the
question whether a chunk is known elsewhere, grants, telemetry, tokens to read) is answered with
404, which clients take for "no"; so is version 2 of shards, whereupon they send version 1.
"""

from __future__ import annotations

from typing import IO, Any

from starlette.responses import Response

from adapterhub.hub.server import bodies, replies
from adapterhub.hub.server.call import Call
from adapterhub.hub.server.routing import Route
from adapterhub.hub.state.errors import Forbidden, RepoNotFound, Unauthorized
from adapterhub.hub.state.names import parse_id
from adapterhub.hub.state.repositories import Repository
from adapterhub.hub.xet import ingest
from adapterhub.hub.xet.shard import MAX_SHARD_BYTES
from adapterhub.hub.xet.xorb import MAX_XORB_BYTES
from adapterhub.hub.xet.xorbs import Space

SECONDS = 3600.0
_PURPOSE = "xet-write"


async def write_token(call: Call) -> Response:
    repository = await call.writable()
    transfers = call.service.transfers
    await call.thread(transfers.tidy)
    space = await call.thread(transfers.xorbs.space, str(repository.key))
    claims = {
        "key": repository.key,
        "kind": repository.id.kind,
        "id": str(repository.id),
        "epoch": space.epoch,
    }
    expires = int(transfers.signer.now() + SECONDS)
    token = transfers.signer.sign(_PURPOSE, claims, SECONDS)
    address = f"{call.url}/xet/{repository.key}/{space.epoch}"
    headers = {
        "X-Xet-Cas-Url": address,
        "X-Xet-Access-Token": token,
        "X-Xet-Token-Expiration": str(expires),
        "Cache-Control": "no-store",
    }
    answer = {"casUrl": address, "accessToken": token, "exp": expires}
    return replies.as_json(answer, headers=headers)


async def _entered(call: Call) -> tuple[Repository, Space]:
    """What the request's token opens, if it is for this address. Raises Unauthorized, NotFound."""
    claims = _claims(call)
    id = parse_id(claims["id"], claims["kind"])
    repository = await call.thread(call.hub.repositories.get, id)
    if repository.key != claims["key"]:
        raise RepoNotFound(f"{id} is another repository by now", remedy="repeat the upload")
    call.notes["repo"] = str(id)
    xorbs = call.service.transfers.xorbs
    return repository, await call.thread(xorbs.space, str(repository.key), claims["epoch"])


def _claims(call: Call) -> dict[str, Any]:
    scheme, _, token = call.request.headers.get("authorization", "").partition(" ")
    try:
        claims = call.service.transfers.signer.read(_PURPOSE, token.strip())
    except Forbidden as error:
        raise _unauthorized(error.message) from None
    if scheme.lower() != "bearer" or (str(claims["key"]), claims["epoch"]) != (
        call.params["key"],
        call.params["epoch"],
    ):
        raise _unauthorized("this token is for another address")
    return claims


def _unauthorized(why: str) -> Unauthorized:
    return Unauthorized(why, remedy="ask for a new token to write")


async def put_xorb(call: Call) -> Response:
    _, space = await _entered(call)
    receiving = space.receiving(call.params["hash"])
    taking = await call.thread(receiving.__enter__)
    try:
        await bodies.receive(call, taking.feed, MAX_XORB_BYTES)
        inserted = await call.thread(taking.finish)
    finally:
        await call.thread(receiving.__exit__, None, None, None)
    return replies.as_json({"was_inserted": inserted})


async def put_shard(call: Call) -> Response:
    """Files of a shard are rebuilt, and are this repository's when the answer is sent."""
    repository, space = await _entered(call)
    contents = call.hub.contents

    def admit(digest: str, size: int) -> None:
        if contents.find(repository, digest) is None:
            contents.check_room(repository, size)

    def register(shard: IO[bytes]) -> None:
        ingest.register(
            call.service.registry.store,
            space,
            shard.read(),
            lambda digest, size: contents.deliver(repository, digest),
            admit=admit,
            max_file_bytes=call.hub.limits.file_size,
        )

    async with (
        bodies.spooled(call, MAX_SHARD_BYTES) as (shard, _),
        call.service.transfers.rebuilding(repository.id.namespace),
    ):
        await call.thread(register, shard)
    return replies.as_json({"result": 1})


ROUTES = (
    Route("GET", "/api/{kind}/{repo}/xet-write-token/{rev}", write_token),
    Route("POST", "/xet/{key}/{epoch}/v1/xorbs/{prefix}/{hash}", put_xorb),
    Route("POST", "/xet/{key}/{epoch}/v1/shards", put_shard),
)
