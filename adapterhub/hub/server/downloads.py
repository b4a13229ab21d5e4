"""Files of a revision: HEAD and GET of `resolve`, whole or a range, straight from the store.

No header of ours tells of Xet, so every client downloads by plain HTTP. Nothing is ever served as
a page: what people push must not run in the browser of who looks at it.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import BinaryIO
from urllib.parse import quote

from starlette.concurrency import run_in_threadpool
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from adapterhub.errors import IntegrityError
from adapterhub.hub.server import replies
from adapterhub.hub.server.call import Call
from adapterhub.hub.server.routing import Route
from adapterhub.hub.state.errors import EntryNotFound
from adapterhub.hub.state.model import Found
from adapterhub.hub.state.objects import pointer
from adapterhub.store import Store

PIECE = 512 * 1024
_RANGE = re.compile(r"bytes=(\d{0,18})-(\d{0,18})")
_TEXT_NAMES = "cfg csv gitattributes gitignore jinja json jsonl md py toml txt yaml yml"
_TEXT = tuple(f".{each}" for each in _TEXT_NAMES.split(" "))
_TEXT_PLAIN = "text/plain; charset=utf-8"


async def resolve(call: Call) -> Response:
    found = await _find(call)
    headers = _headers(found)
    if found.file.lfs:
        headers |= {"X-Linked-ETag": headers["ETag"], "X-Linked-Size": str(found.file.size)}
    if _matches(call.request.headers.get("if-none-match"), headers["ETag"]):
        return Response(status_code=304, headers=headers)
    asked = call.request.headers.get("range")
    if_range = call.request.headers.get("if-range")
    if if_range is not None and if_range != headers["ETag"]:
        asked = None
    extent = _extent(asked, found.file.size)
    if extent is None:
        error = replies.plain_error(416, f"the file has {found.file.size} bytes")
        error.headers["Content-Range"] = f"bytes */{found.file.size}"
        return error
    return await _answer(call, found, extent, headers)


async def raw(call: Call) -> Response:
    """As `resolve`; of a file of LFS, the pointer that git would show."""
    found = await _find(call)
    if not found.file.lfs:
        return await resolve(call)
    body = pointer(found.file.sha256, found.file.size)
    headers = _headers(found) | {"ETag": f'"{found.file.oid}"', "Content-Type": _TEXT_PLAIN}
    return Response(body, headers=headers)


async def _find(call: Call) -> Found:
    repository = await call.readable()
    call.notes["repo"] = str(repository.id)
    path = call.params["path"]
    if not path:
        raise EntryNotFound("no path was given", remedy="name a file")
    return await call.thread(call.hub.file, repository, call.rev, path)


async def _answer(call: Call, found: Found, extent: Extent, headers: Mapping[str, str]) -> Response:
    size = found.file.size
    status = 206 if extent.partial else 200
    out = {**headers, "Content-Length": str(extent.length)}
    if extent.partial:
        out["Content-Range"] = f"bytes {extent.start}-{extent.start + extent.length - 1}/{size}"
    if call.request.method == "HEAD":
        return Response(status_code=status, headers=out)
    file = await call.thread(_opened, call.service.registry.store, found)
    return FileResponse(file, extent, status, out)


def _opened(store: Store, found: Found) -> BinaryIO:
    """Raises IntegrityError where its size is not the recorded one."""
    size = store.blob_size(found.file.digest)
    if size != found.file.size:
        raise IntegrityError(
            f"blob {found.file.digest} has {size} bytes; {found.file.size} expected",
            remedy="upload the file again, or restore the hub's home from a backup",
        )
    return store.open_blob(found.file.digest)


@dataclass(frozen=True)
class Extent:
    """What of a file is sent, in bytes; `partial`: because a range was asked for."""

    start: int
    length: int
    partial: bool


def _extent(asked: str | None, size: int) -> Extent | None:
    """What a Range header asks for; all where it is none, or not one that is served here (units
    other than bytes, several ranges). None where it cannot be satisfied.
    """
    found = _RANGE.fullmatch(asked.replace(" ", "")) if asked else None
    if found is None or not (found[1] or found[2]):
        return Extent(0, size, False)
    if not found[1]:
        length = min(int(found[2]), size)
        return Extent(size - length, length, True) if length else None
    start, end = int(found[1]), min(int(found[2] or size), size - 1)
    if found[2] and int(found[2]) < start:
        return Extent(0, size, False)
    return Extent(start, end - start + 1, True) if start < size else None


class FileResponse(Response):
    """Sends an open file and closes it; holds PIECE bytes, and stops when the client has gone."""

    def __init__(
        self, file: BinaryIO, extent: Extent, status: int, headers: Mapping[str, str]
    ) -> None:
        super().__init__(None, status, headers)
        self._file, self._extent = file, extent

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        gone = asyncio.create_task(_disconnected(receive))
        try:
            start = {"type": "http.response.start", "status": self.status_code}
            await send({**start, "headers": self.raw_headers})
            await self._send_body(send, gone)
        finally:
            gone.cancel()
            await run_in_threadpool(self._file.close)

    async def _send_body(self, send: Send, gone: asyncio.Task[None]) -> None:
        await run_in_threadpool(self._file.seek, self._extent.start)
        left = self._extent.length
        while not gone.done():
            piece = await run_in_threadpool(self._file.read, min(PIECE, left))
            left -= len(piece)
            if left and not piece:
                raise OSError("the file ended before its size")  # the connection is cut, not ended
            await send({"type": "http.response.body", "body": piece, "more_body": left > 0})
            if not left:
                return


async def _disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


def _headers(found: Found) -> dict[str, str]:
    file, name = found.file, found.path.rsplit("/", 1)[-1]
    is_text = not file.lfs and name.lower().endswith(_TEXT)
    return {
        "X-Repo-Commit": found.commit.id,
        "ETag": f'"{file.sha256 if file.lfs else file.oid}"',
        "Accept-Ranges": "bytes",
        "Content-Type": _TEXT_PLAIN if is_text else "application/octet-stream",
        "Content-Disposition": f"{'inline' if is_text else 'attachment'}; "
        f"filename*=UTF-8''{quote(name, safe='')}",
        "Content-Security-Policy": "default-src 'none'; sandbox",
        "X-Content-Type-Options": "nosniff",
    }


def _matches(header: str | None, etag: str) -> bool:
    if header is None:
        return False
    tags = [tag.strip().removeprefix("W/") for tag in header.split(",")]
    return etag in tags or "*" in tags


ROUTES = tuple(
    Route("GET HEAD", f"{prefix}/{{repo}}/{what}/{{rev}}/{{path:rest}}", handler)
    for what, handler in (("resolve", resolve), ("raw", raw))
    for prefix in ("/{kind}", "")
)
