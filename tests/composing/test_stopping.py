"""Work that nobody waits for ends: the other modules after an error in one, or after Ctrl-C."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

import numpy as np
import pytest

from adapterhub.composing import blocks, sketch, stopping
from adapterhub.composing.window import in_order


def blockwise() -> None:
    blocks.each((2, 3), lambda rows: time.sleep(0.001))


def sketched() -> None:
    # wide enough for random subspaces, which are looked for in several rounds
    sketch.truncated(np.ones((520, 600), np.float32), 4, None)


@pytest.mark.parametrize("step", [blockwise, sketched])
@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_after_an_error_the_others_end(
    step: Callable[[], None], error: type[BaseException]
) -> None:
    """`step` for ever, unless it is stopped; a thread that is left would keep the pool open."""
    running, ended = threading.Event(), []

    def work(item: int) -> None:
        if item == 0:
            running.wait()
            raise error("here")
        try:
            while True:
                running.set()
                step()
        except stopping.Stopped:
            ended.append(item)
            raise

    with pytest.raises(error, match="here"):
        list(in_order([0, 1], work, lambda item: 0, threads=2))
    assert ended == [1]


def test_what_is_waited_for_is_not_stopped() -> None:
    done = list(in_order(range(5), lambda n: (blockwise(), n)[1], lambda n: 0, threads=2))
    assert done == [(n, n) for n in range(5)]
    stopping.check()  # nothing is left over in this thread
