"""What a child process costs: wall time, CPU seconds, and its memory by kind. Linux only.

Memory is read from /proc for the child and its descendants every 10 ms. A shorter peak is missed;
the kernel's own `high_water` bounds what it can have been. (wait4's ru_maxrss is of no use here:
it starts at what the parent had.)
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, NamedTuple

PERIOD = 0.01
FAMILY_PERIOD = 0.1
_NAMES = (b"RssAnon", b"RssFile", b"RssShmem", b"VmHWM")
_FIELDS = re.compile(rb"^(VmHWM|Rss\w+):\s+(\d+) kB$", re.MULTILINE)


class Memory(NamedTuple):
    """Peaks in bytes, each for itself: they need not have been at one moment."""

    anonymous: int = 0
    file_backed: int = 0
    shared: int = 0
    high_water: int = 0

    def or_higher(self, other: Memory) -> Memory:
        return Memory(*map(max, zip(self, other, strict=True)))


NOTHING = Memory()


@dataclass(frozen=True)
class Measured:
    """Seconds; `walls` are those of each step. `out` and `err` are what the last step printed."""

    wall: float
    user: float
    system: float
    memory: Memory = NOTHING
    walls: tuple[float, ...] = ()
    status: int = 0
    out: str = ""
    err: str = ""

    @property
    def cpu(self) -> float:
        return self.user + self.system

    def record(self) -> dict[str, Any]:
        """Seconds and bytes, as JSON has them."""
        times = {"wall": self.wall, "user": self.user, "system": self.system}
        return times | {"walls": list(self.walls), "memory": self.memory._asdict()}


def run(steps: Sequence[Sequence[str]], environment: Mapping[str, str]) -> Measured:
    """The commands one after the other, up to the first that fails; times added, peaks kept."""
    total = Measured(0, 0, 0)
    for step in steps:
        one = _run(step, environment)
        total = Measured(
            total.wall + one.wall,
            total.user + one.user,
            total.system + one.system,
            total.memory.or_higher(one.memory),
            (*total.walls, one.wall),
            one.status,
            one.out,
            one.err,
        )
        if one.status:
            break
    return total


def _run(command: Sequence[str], environment: Mapping[str, str]) -> Measured:
    program = shutil.which(command[0])
    if program is None:
        return Measured(0, 0, 0, status=127, err=f"{command[0]} is not installed")
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        actions = [(os.POSIX_SPAWN_DUP2, file.fileno(), n) for n, file in ((1, out), (2, err))]
        start = time.perf_counter()
        pid = os.posix_spawn(program, [*command], environment, file_actions=actions)
        sampler = _Sampler(pid)
        sampler.start()
        try:
            status, usage = _wait(pid)
            wall = time.perf_counter() - start
        finally:
            sampler.stop()
        code = os.waitstatus_to_exitcode(status)
        texts = _text(out), _text(err)
    return Measured(wall, usage.ru_utime, usage.ru_stime, sampler.peak, (wall,), code, *texts)


def _wait(pid: int) -> tuple[int, Any]:
    """Exit status and resource usage."""
    try:
        return os.wait4(pid, 0)[1:]
    except BaseException:  # an interrupted bench leaves no merge running
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGTERM)
        os.waitpid(pid, 0)
        raise


def _text(file: IO[bytes]) -> str:
    file.seek(0)
    return file.read().decode("utf-8", "replace")


class _Sampler(threading.Thread):
    """Keeps the peak of each kind of memory, summed over the child and its descendants."""

    def __init__(self, pid: int) -> None:
        super().__init__(daemon=True)
        self.pid = pid
        self.peak = Memory()
        self._stopped = threading.Event()

    def run(self) -> None:
        family, looked = [self.pid], time.monotonic()
        while True:
            kinds = zip(*(_memory(pid) for pid in family), strict=True)
            self.peak = self.peak.or_higher(Memory(*(sum(kind) for kind in kinds)))
            if self._stopped.wait(PERIOD):
                return
            if time.monotonic() - looked > FAMILY_PERIOD:
                family, looked = [self.pid, *_descendants(self.pid)], time.monotonic()

    def stop(self) -> None:
        self._stopped.set()
        self.join()


def _memory(pid: int) -> Memory:
    """Now; nothing for a process that is gone. Few calls: it runs beside what is being timed."""
    try:
        fd = os.open(f"/proc/{pid}/status", os.O_RDONLY)
    except OSError:
        return NOTHING
    try:
        found = dict(_FIELDS.findall(os.read(fd, 8192)))
    except ProcessLookupError:
        return NOTHING
    finally:
        os.close(fd)
    return Memory(*(1024 * int(found.get(name, 0)) for name in _NAMES))


def _descendants(pid: int) -> Iterator[int]:
    for path in Path(f"/proc/{pid}/task").glob("*/children"):
        with suppress(OSError):
            for child in map(int, path.read_text().split()):
                yield child
                yield from _descendants(child)
