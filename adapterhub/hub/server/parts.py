"""Files that arrive in parts, in any order, any part more than once.

The parts are written at their places in one temporary file, and hashed in order behind the last
one that is whole, so that little is left to do when the client says that it is done. An upload
lives as long as this process, or an hour without news of it; then its client begins anew.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Callable
from contextlib import ExitStack, asynccontextmanager
from dataclasses import dataclass, field

from adapterhub.errors import NotFound, StoreError
from adapterhub.hub.server import bodies, uploads
from adapterhub.hub.server.call import Call
from adapterhub.hub.state.errors import Conflict, InvalidRequest
from adapterhub.store import Arriving, Store

IDLE_SECONDS = 3600.0
MOST_OPEN = 256


@dataclass(frozen=True)
class Upload:
    """Which one: a file of `size` bytes and this sha256 for one repository, by its key."""

    repository: int
    oid: str
    size: int
    part_size: int

    @property
    def count(self) -> int:
        return -(-self.size // self.part_size)

    def length(self, number: int) -> int:
        """Bytes of a part; the first is number 1."""
        return min(self.part_size, self.size - (number - 1) * self.part_size)


class Parts:
    """All uploads in parts of this process. Its methods are called on the event loop."""

    def __init__(self, store: Store, now: Callable[[], float] = time.monotonic) -> None:
        self._store = store
        self._now = now
        self._open: dict[Upload, Assembly] = {}

    @asynccontextmanager
    async def take(self, call: Call, upload: Upload, *, begin: bool) -> AsyncIterator[Assembly]:
        """The upload, kept open meanwhile. Raises NotFound for one that has not begun and shall
        not, StoreError where too many are open.
        """
        await self._drop_idle(call)
        assembly = self._open.get(upload)
        if assembly is None:
            if not begin:
                raise NotFound("no part of this upload is here", remedy="repeat the upload")
            if len(self._open) >= MOST_OPEN:
                raise StoreError(f"{MOST_OPEN} uploads in parts are open", remedy="wait a moment")
            assembly = self._open[upload] = Assembly(upload, self._store)
        assembly.users += 1
        try:
            yield assembly
        finally:
            assembly.users -= 1
            assembly.used = self._now()
            if assembly.over and self._open.get(upload) is assembly:
                del self._open[upload]
            if assembly.over and not assembly.users:
                await assembly.close(call)

    async def _drop_idle(self, call: Call) -> None:
        before = self._now() - IDLE_SECONDS
        for upload, each in list(self._open.items()):
            if not each.users and each.used < before:
                del self._open[upload]
                await each.close(call)


@dataclass
class Assembly:
    """One upload. `whole`: the parts that are here, which are not written again."""

    upload: Upload
    store: Store
    users: int = 0
    used: float = 0.0
    over: bool = False
    whole: set[int] = field(default_factory=set)
    _turns: dict[int, int] = field(default_factory=dict)
    _stack: ExitStack = field(default_factory=ExitStack)
    _blob: Arriving | None = None
    _mutex: threading.Lock = field(default_factory=threading.Lock)
    _hashing: asyncio.Task[None] | None = None
    _completing: asyncio.Lock = field(default_factory=asyncio.Lock)

    async def put(self, call: Call, number: int) -> None:
        """Takes a part from the body. Raises what `bodies.receive` does, InvalidRequest for
        another length, Conflict when the same part begins to arrive once more meanwhile.
        """
        length = self.upload.length(number)
        uploads.check_length(call, length)
        turn = self._turns[number] = self._turns.get(number, 0) + 1
        place = (number - 1) * self.upload.part_size

        def write(piece: bytes) -> None:
            nonlocal place
            with self._mutex:
                if number not in self.whole:
                    self._check_turn(number, turn)
                    self._opened().write_at(place, piece)
            place += len(piece)

        size = await bodies.receive(call, write, length)
        if size != length:
            raise uploads.wrong_size(size, length)
        await call.thread(self._add, number, turn)
        if self._hashing is None or self._hashing.done():
            self._hashing = asyncio.create_task(call.thread(self._hash))

    async def complete(self, call: Call, deliver: Callable[[str], object]) -> None:
        """Makes it a blob, and hands its digest to `deliver`; once, however often it is asked for.

        Raises InvalidRequest where parts are missing, IntegrityError where the sha256 is another.
        """
        async with self._completing:
            if self.over:
                return
            missing = self.upload.count - len(self.whole)
            if missing:
                raise InvalidRequest(
                    f"{missing} of {self.upload.count} parts are missing",
                    remedy="send every part, then complete the upload",
                )
            if self._hashing is not None:
                await self._hashing
            self.over = True
            await call.change(self._finish, deliver)

    async def close(self, call: Call) -> None:
        await bodies.settled(self._hashing)
        await call.thread(self._stack.close)

    def _opened(self) -> Arriving:
        if self._blob is None:
            self._blob = self._stack.enter_context(self.store.arriving_blob())
        return self._blob

    def _check_turn(self, number: int, turn: int) -> None:
        if self.over or self._turns[number] != turn:
            raise Conflict(
                f"part {number} is being sent by another request", remedy="let one finish"
            )

    def _add(self, number: int, turn: int) -> None:
        with self._mutex:
            if number not in self.whole:
                self._check_turn(number, turn)
                self.whole.add(number)

    def _hash(self) -> None:
        """Every part that is whole, in order, up to the first that is not."""
        if self._blob is None:
            return
        while (number := self._blob.size // self.upload.part_size + 1) in self.whole:
            self._blob.hash_up_to((number - 1) * self.upload.part_size + self.upload.length(number))
            if self._blob.size == self.upload.size:
                return

    def _finish(self, deliver: Callable[[str], object]) -> None:
        self._hash()
        blob = self._opened()
        expected = f"sha256:{self.upload.oid}"
        if blob.digest != expected:
            raise uploads.wrong_digest(blob.digest, expected)
        with self.store.writing():
            deliver(blob.commit())
