"""Git LFS as Hugging Face's clients speak it: batch, basic, multipart, verify.

The upload addresses are signed (`signing.py`), for clients send them neither token nor headers.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from starlette.responses import Response

from adapterhub.hub.server import bodies, replies, uploads
from adapterhub.hub.server.call import Call
from adapterhub.hub.server.parts import Upload
from adapterhub.hub.server.routing import Route
from adapterhub.hub.state.errors import Forbidden, InvalidRequest, RepoNotFound
from adapterhub.hub.state.names import parse_id
from adapterhub.hub.state.repositories import Repository

MIB = 1024 * 1024
MULTIPART_FROM = 1024 * MIB
PART_BYTES = 128 * MIB
MOST_PARTS = 1000
MOST_OBJECTS = 1000
SECONDS = 12 * 3600.0
_OID = re.compile(r"[0-9a-f]{64}")
_MEDIA = {"Content-Type": "application/vnd.git-lfs+json"}


async def batch(call: Call) -> Response:
    """How each object is to be sent; without actions where this repository has it already."""
    repository = await call.writable()
    document = await call.json()
    if document.get("operation") != "upload":
        raise InvalidRequest(
            f"operation {str(document.get('operation'))[:40]!a} is not served here",
            remedy="download files from their `resolve` addresses",
        )
    wanted = [_wanted(each) for each in _objects(document)]
    transfers = document.get("transfers") or ["basic"]
    if not isinstance(transfers, list):
        raise InvalidRequest("transfers is a list", remedy="offer basic or multipart")
    found = await call.thread(_delivered, call, repository, wanted)
    out = [_object(call, repository, oid, size, found, transfers) for oid, size in wanted]
    several = any("header" in each.get("actions", {}).get("upload", {}) for each in out)
    transfer = "multipart" if several else "basic"
    return replies.as_json({"transfer": transfer, "objects": out}, headers=_MEDIA)


def _objects(document: Mapping[str, Any]) -> Sequence[Any]:
    if document.get("hash_algo", "sha256") != "sha256":
        raise InvalidRequest("objects are named by their sha256 here", remedy="use sha256")
    objects = document.get("objects")
    if not isinstance(objects, list) or len(objects) > MOST_OBJECTS:
        raise InvalidRequest(
            f"a batch has a list of at most {MOST_OBJECTS} objects", remedy="send several batches"
        )
    return objects


def _wanted(item: object) -> tuple[str, int]:
    oid, size = (item.get("oid"), item.get("size")) if isinstance(item, dict) else (None, None)
    if not isinstance(oid, str) or not _OID.fullmatch(oid) or type(size) is not int or size < 0:
        raise InvalidRequest(
            "an object has an oid of 64 lowercase hexadecimal digits and a size in bytes",
            remedy="correct the batch",
        )
    return oid, size


def _delivered(
    call: Call, repository: Repository, wanted: Sequence[tuple[str, int]]
) -> dict[str, int]:
    """Sizes of those that this repository has. Raises TooLarge where the others have no room."""
    contents = call.hub.contents
    rows = ((oid, contents.find(repository, f"sha256:{oid}")) for oid, _ in wanted)
    found = {oid: content.size for oid, content in rows if content is not None}
    for oid, size in wanted:
        if oid not in found:
            contents.check_room(repository, size)
    return found


def _object(
    call: Call,
    repository: Repository,
    oid: str,
    size: int,
    found: Mapping[str, int],
    transfers: Sequence[object],
) -> dict[str, Any]:
    base = {"oid": oid, "size": size}
    if found.get(oid, size) != size:
        message = f"the content with this sha256 has {found[oid]} bytes"
        return base | {"error": {"code": 422, "message": message}}
    if oid in found:
        return base
    in_parts = "multipart" in transfers and (size > MULTIPART_FROM or "basic" not in transfers)
    make = _multipart if in_parts and size else _basic
    upload = make(call, repository, oid, size) | {"expires_in": int(SECONDS)}
    verify = {"href": f"{_git(call, repository)}/verify"}
    return base | {"authenticated": True, "actions": {"upload": upload, "verify": verify}}


def _git(call: Call, repository: Repository) -> str:
    prefix = "" if repository.id.kind == "model" else f"{repository.id.kind}s/"
    return f"{call.url}/{prefix}{repository.id}.git/info/lfs"


def _basic(call: Call, repository: Repository, oid: str, size: int) -> dict[str, Any]:
    return {"href": _signed(call, "file", repository, oid=oid, size=size)}


def _multipart(call: Call, repository: Repository, oid: str, size: int) -> dict[str, Any]:
    """Clients check that there are as many addresses as the sizes demand."""
    part_size = max(PART_BYTES, -(-size // MOST_PARTS))
    upload = Upload(repository.key, oid, size, part_size)
    claims = {"oid": oid, "size": size, "part_size": part_size}
    header = {
        f"{number:05}": _signed(call, "part", repository, **claims, part=number)
        for number in range(1, upload.count + 1)
    }
    header["chunk_size"] = str(part_size)
    return {"href": _signed(call, "complete", repository, **claims), "header": header}


def _signed(call: Call, what: str, repository: Repository, **claims: Any) -> str:
    claims |= {"key": repository.key, "kind": repository.id.kind, "id": str(repository.id)}
    ticket = call.service.transfers.signer.sign(f"lfs-{what}", claims, SECONDS)
    return f"{call.url}/api/lfs/{what}/{claims['oid']}?sig={ticket}"


async def _ticket(call: Call, what: str) -> tuple[dict[str, Any], Repository]:
    """The claims of the request's address and the repository that they name. Raises Forbidden,
    RepoNotFound.
    """
    claims = call.service.transfers.signer.read(f"lfs-{what}", call.query("sig"))
    if claims["oid"] != call.params["oid"]:
        raise Forbidden("this signature is for another content", remedy="repeat the upload")
    id = parse_id(claims["id"], claims["kind"])
    repository = await call.thread(call.hub.repositories.get, id)
    if repository.key != claims["key"]:
        raise RepoNotFound(f"{id} is another repository by now", remedy="repeat the upload")
    call.notes["repo"] = str(id)
    return claims, repository


def _upload(claims: Mapping[str, Any]) -> Upload:
    return Upload(claims["key"], claims["oid"], claims["size"], claims["part_size"])


async def put_file(call: Call) -> Response:
    claims, repository = await _ticket(call, "file")
    size, expected = claims["size"], f"sha256:{claims['oid']}"
    uploads.check_length(call, size)
    store = call.service.registry.store
    async with uploads.arriving(call, store) as blob:
        found = await bodies.receive(call, blob.write, size)
        if found != size:
            raise uploads.wrong_size(found, size)
        if blob.digest != expected:
            raise uploads.wrong_digest(blob.digest, expected)

        def keep() -> None:
            with store.writing():
                call.hub.contents.deliver(repository, blob.commit())

        await call.change(keep)
    return Response(status_code=200, headers={"ETag": f'"{claims["oid"]}"'})


async def put_part(call: Call) -> Response:
    """Answers with an ETag, which clients give back in `complete`."""
    claims, _ = await _ticket(call, "part")
    parts = call.service.transfers.parts
    async with parts.take(call, _upload(claims), begin=True) as assembly:
        await assembly.put(call, claims["part"])
    return Response(status_code=200, headers={"ETag": f'"{claims["oid"]}-{claims["part"]}"'})


async def complete(call: Call) -> Response:
    claims, repository = await _ticket(call, "complete")
    document = await call.json()
    upload = _upload(claims)
    _check_parts(document, upload)
    contents = call.hub.contents
    digest = f"sha256:{upload.oid}"
    if await call.thread(contents.find, repository, digest) is None:
        async with call.service.transfers.parts.take(call, upload, begin=False) as assembly:
            await assembly.complete(call, lambda found: contents.deliver(repository, found))
    return replies.as_json({"oid": upload.oid, "size": upload.size})


def _check_parts(document: Mapping[str, Any], upload: Upload) -> None:
    parts = document.get("parts")
    rows = parts if isinstance(parts, list) else []
    listed = [each.get("partNumber") for each in rows if isinstance(each, dict)]
    if document.get("oid") != upload.oid or listed != list(range(1, upload.count + 1)):
        raise InvalidRequest(
            f"the request must name oid {upload.oid} and its {upload.count} parts in order",
            remedy="complete the upload that this address was given out for",
        )


async def verify(call: Call) -> Response:
    repository = await call.writable()
    oid, size = _wanted(await call.json())
    content = await call.thread(call.hub.contents.need, repository, f"sha256:{oid}")
    if content.size != size:
        raise uploads.wrong_size(content.size, size)
    return replies.as_json({}, headers=_MEDIA)


ROUTES = (
    Route("POST", "/{kind}/{repo}.git/info/lfs/objects/batch", batch),
    Route("POST", "/{repo}.git/info/lfs/objects/batch", batch),
    Route("POST", "/{kind}/{repo}.git/info/lfs/verify", verify),
    Route("POST", "/{repo}.git/info/lfs/verify", verify),
    Route("PUT", "/api/lfs/file/{oid}", put_file),
    Route("PUT", "/api/lfs/part/{oid}", put_part),
    Route("POST", "/api/lfs/complete/{oid}", complete),
)
