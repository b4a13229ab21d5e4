"""What requests wait for in line, so that those that wait leave threads to the others."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field

WRITERS = 16  # of starlette's 40 threads; only one changes hub.db at a time
FOLLOWERS = 4  # deletions and moves wait for the index, which may be at a large adapter
HEAVY = 2  # what keeps a core busy for a second or two: large JSON, cards, differences


@dataclass(frozen=True)
class Load:
    writing: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(WRITERS))
    following: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(FOLLOWERS))
    heavy: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(HEAVY))
