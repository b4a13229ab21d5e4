"""What uploads share: the key that signs their addresses, the parts and the xorbs under way."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from weakref import WeakValueDictionary

from adapterhub.hub.server.parts import Parts
from adapterhub.hub.server.signing import Signer, load_key
from adapterhub.hub.xet.xorbs import Xorbs
from adapterhub.store import Store

TIDY_SECONDS = 3600.0
REBUILDERS = 2  # shards at a time: each keeps a core busy, and the disk


@dataclass
class Transfers:
    signer: Signer
    parts: Parts
    xorbs: Xorbs
    _rebuilders: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(REBUILDERS))
    _turns: WeakValueDictionary[str, asyncio.Lock] = field(default_factory=WeakValueDictionary)
    _tidied: float = -TIDY_SECONDS

    @classmethod
    def opened(cls, store: Store) -> Transfers:
        """Raises OutputError, StoreError."""
        folder = store.home / "hub"
        return cls(Signer(load_key(folder / "signing.key")), Parts(store), Xorbs(folder / "xet"))

    @asynccontextmanager
    async def rebuilding(self, namespace: str) -> AsyncIterator[None]:
        """Waits until a shard may be rebuilt; one namespace does not take all the turns."""
        turn = self._turns.setdefault(namespace, asyncio.Lock())
        async with turn, self._rebuilders:
            yield

    def tidy(self) -> None:
        """Once an hour: drops the xorbs of epochs that are over. Raises OutputError, StoreError."""
        now = time.monotonic()
        if now - self._tidied >= TIDY_SECONDS:
            self._tidied = now
            self.xorbs.collect()
