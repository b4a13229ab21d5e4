"""What uploads share: the key that signs their addresses, the parts and the xorbs under way."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass, field

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
    rebuilding: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(REBUILDERS))
    _tidied: float = -TIDY_SECONDS

    @classmethod
    def opened(cls, store: Store) -> Transfers:
        """Raises OutputError, StoreError."""
        folder = store.home / "hub"
        return cls(Signer(load_key(folder / "signing.key")), Parts(store), Xorbs(folder / "xet"))

    def tidy(self) -> None:
        """Once an hour: drops the xorbs of epochs that are over. Raises OutputError, StoreError."""
        now = time.monotonic()
        if now - self._tidied >= TIDY_SECONDS:
            self._tidied = now
            self.xorbs.collect()
