"""Bodies that are streamed to a thread, and the addresses that take a file or a part of one.

Nothing here holds more than a few MB of a request. What was cut off, is too long, or has another
sha256 than the address says leaves nothing behind.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import ExitStack, asynccontextmanager
from typing import TypeVar

from starlette.requests import ClientDisconnect

from adapterhub.errors import AdapterHubError, IntegrityError
from adapterhub.hub.server.call import Call
from adapterhub.hub.state.errors import InvalidRequest, TooLarge
from adapterhub.store import Arriving, Store

PIECE = 2 * 1024 * 1024
STALL_SECONDS = 300.0
T = TypeVar("T")


class Stalled(AdapterHubError):
    """408: clients repeat the request by themselves."""

    status = 408
    error_code = None


async def receive(call: Call, write: Callable[[bytes], object], limit: int) -> int:
    """Hands the body to `write`, in a thread and in order, while more of it arrives; its size.

    Holds two times PIECE bytes. Raises TooLarge beyond `limit` bytes, Stalled, ClientDisconnect,
    and what `write` raises.
    """
    size = waiting = 0
    held: list[bytes] = []
    busy: asyncio.Task[None] | None = None
    try:
        async for piece in _pieces(call):
            size += len(piece)
            if size > limit:
                raise too_large(size, limit)
            held.append(piece)
            waiting += len(piece)
            if waiting >= PIECE:
                if busy is not None:
                    await busy
                busy = asyncio.create_task(call.thread(_write_all, write, held))
                held, waiting = [], 0
        if busy is not None:
            await busy
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
async def arriving(call: Call, store: Store) -> AsyncIterator[Arriving]:
    """`Store.arriving_blob`, opened and closed in a thread."""
    stack = ExitStack()
    blob = await call.thread(stack.enter_context, store.arriving_blob())
    try:
        yield blob
    finally:
        await call.thread(stack.close)


def check_length(call: Call, size: int) -> None:
    """Raises InvalidRequest where the client announces another length than `size` bytes."""
    announced = call.request.headers.get("content-length")
    if announced is not None and announced != str(size):
        raise wrong_size(announced, size)


def wrong_size(found: object, expected: int) -> AdapterHubError:
    return InvalidRequest(
        f"{found} bytes were sent where {expected} were announced", remedy="repeat the upload"
    )


def wrong_digest(found: str, expected: str) -> AdapterHubError:
    return IntegrityError(
        f"the bytes that arrived hash to {found}; announced was {expected}",
        remedy="repeat the upload; if it fails again, the file changes while it is read",
    )


def too_large(size: int, limit: int) -> AdapterHubError:
    return TooLarge(
        f"the request has {size} bytes or more; at most {limit} are taken here",
        remedy="split it, or ask who runs the hub",
    )
