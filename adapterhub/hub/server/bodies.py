"""Bodies of requests, as they arrive: streamed to a thread, or kept on the disk until all is there.

A client may take its time, but what it holds of the server meanwhile is a connection and a few MB
at most: small bodies stay in memory, larger ones wait in a file without a name.
"""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import IO, TYPE_CHECKING, TypeVar

from starlette.requests import ClientDisconnect

from adapterhub.errors import AdapterHubError
from adapterhub.hub.state.errors import TooLarge
from adapterhub.store import files

if TYPE_CHECKING:
    from adapterhub.hub.server.call import Call

PIECE = 2 * 1024 * 1024
SMALL = 64 * 1024  # bytes of a body that are held in memory while the rest of it is awaited
SPOOLED = 256 * 1024
STALL_SECONDS = 300.0
T = TypeVar("T")


class Stalled(AdapterHubError):
    """408: clients repeat the request by themselves."""

    status = 408
    error_code = None


async def receive(
    call: Call, write: Callable[[bytes], object], limit: int, piece_bytes: int = PIECE
) -> int:
    """Hands the body to `write`, in a thread and in order, while more of it arrives; its size.

    Holds two times `piece_bytes`. Raises TooLarge beyond `limit` bytes, Stalled, ClientDisconnect,
    and what `write` raises.
    """
    size = waiting = 0
    held: list[bytes] = []
    busy: asyncio.Task[None] | None = None
    try:
        async for piece in _pieces(call):
            size += len(piece)
            if size > limit:
                raise _too_large(size, limit)
            held.append(piece)
            waiting += len(piece)
            if waiting >= piece_bytes:
                if busy is not None:
                    await busy
                busy = asyncio.create_task(call.thread(_write_all, write, held))
                held, waiting = [], 0
        if busy is not None:
            await busy
        if held:
            await call.thread(_write_all, write, held)
    finally:
        await settled(busy)
    return size


def _write_all(write: Callable[[bytes], object], pieces: Sequence[bytes]) -> None:
    for piece in pieces:
        write(piece)


async def _pieces(call: Call) -> AsyncIterator[bytes]:
    """As `Request.stream`, and no client keeps us waiting for ever."""
    more = True
    while more:
        try:
            async with asyncio.timeout(STALL_SECONDS):
                message = await call.request.receive()
        except TimeoutError:
            raise Stalled(
                f"nothing arrived for {STALL_SECONDS:.0f} s", remedy="repeat the upload"
            ) from None
        if message["type"] == "http.disconnect":
            raise ClientDisconnect
        if body := message.get("body", b""):
            yield body
        more = message.get("more_body", False)


async def settled(task: asyncio.Task[T] | None) -> None:
    """Waits for a task whose result no longer matters, so that its thread uses nothing closed."""
    if task is not None and not task.done():
        await asyncio.wait({task})
    if task is not None and not task.cancelled():
        task.exception()


@asynccontextmanager
async def spooled(call: Call, limit: int) -> AsyncIterator[tuple[IO[bytes], int]]:
    """All of the body as a file, to be read from its start, and its size in bytes.

    Raises as `receive`, and OutputError where it does not fit on the disk.
    """
    home = call.service.registry.store.home
    with tempfile.SpooledTemporaryFile(SMALL, dir=str(home / "tmp")) as file:

        def write(piece: bytes) -> None:
            with files.named_errors(home):
                file.write(piece)

        size = await receive(call, write, limit, SPOOLED)
        file.seek(0)
        yield file, size


def _too_large(size: int, limit: int) -> AdapterHubError:
    return TooLarge(
        f"the request has {size} bytes or more; at most {limit} are taken here",
        remedy="split it, or ask who runs the hub",
    )
