"""What the addresses that take a file, or a part of one, have in common.

What was cut off, is too long, or has another sha256 than the address says leaves nothing behind.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import ExitStack, asynccontextmanager

from adapterhub.errors import AdapterHubError, IntegrityError
from adapterhub.hub.server.call import Call
from adapterhub.hub.state.errors import InvalidRequest
from adapterhub.store import Arriving, Store


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
