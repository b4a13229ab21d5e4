"""A guard for what hostile input could make endless.

Not a measure of speed, which tests do not assert: what is guarded takes a fraction of a second,
and minutes or years where its defence is missing, so that the limit lies far from both.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

SECONDS = 30.0


@contextmanager
def ends() -> Iterator[None]:
    """What is done under it takes this thread less than SECONDS of its own time."""
    started = time.thread_time()
    yield
    spent = time.thread_time() - started
    assert spent < SECONDS, f"{spent:.0f} s of this thread's time"
