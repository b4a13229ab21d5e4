"""A change made again and again, each time by a process that is killed one step later.

A driver is a program of its own, which no other thread runs in: it calls `every_step`, and a test
runs it by `drive`.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

HERE = Path(__file__).parent
MOST = 1000


def kill() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def at(number: int, strike: Callable[[], object] = kill) -> Callable[..., None]:
    """A hook of any arguments that strikes when it is called for the `number`-th time."""
    calls = 0

    def hook(*_: object) -> None:
        nonlocal calls
        calls += 1
        if calls == number:
            strike()

    return hook


def died(work: Callable[[], object]) -> bool:
    """Runs `work` in a process of its own; whether it was killed. What it raises ends us both."""
    child = os.fork()
    if child == 0:
        try:
            work()
        except BaseException as error:
            print(repr(error), file=sys.stderr, flush=True)
            os._exit(1)
        os._exit(0)
    _, status = os.waitpid(child, 0)
    if os.WIFSIGNALED(status):
        return True
    if os.WEXITSTATUS(status):
        raise RuntimeError("the work failed, as it says above")
    return False


def every_step(
    folder: Path, work: Callable[[Path, int], object], template: Path | None = None
) -> NoReturn:
    """`work(folder/N, N)` for N = 1, 2 …, until it outlives its N-th step; prints how many died.

    Each gets a copy of `template`, where there is one.
    """
    for number in range(1, MOST):
        place = folder / str(number)
        if template is not None:
            shutil.copytree(template, place)
        if not died(lambda place=place, number=number: work(place, number)):  # type: ignore[misc]
            print(number - 1)
            sys.exit(0)
    sys.exit(f"no end after {MOST} steps")


def drive(driver: Path, *arguments: object, **environment: str) -> int:
    """How many died, of those that the program `driver` started."""
    path = os.pathsep.join(map(str, (HERE, *filter(None, [os.environ.get("PYTHONPATH")]))))
    done = subprocess.run(
        [sys.executable, driver, *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | {"PYTHONPATH": path} | environment,
    )
    assert done.returncode == 0, done.stderr
    return int(done.stdout)
