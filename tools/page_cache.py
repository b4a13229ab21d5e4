"""Leaves no memory free: what is not in use holds pages of a file of nothing.

So it is on a machine that has been up for a while: who writes gets pages that held something not
looked at for long. Free memory is not that: a virtual machine gives it back to its host within
seconds, and getting it again can take ten times as long as writing to it, so that a command would
be measured by how much memory the one before it left behind.
"""

from __future__ import annotations

import os
from pathlib import Path

_PIECE = 4 << 20
_CHECK = 64 << 20


class Filler:
    """Reads on in a sparse file, round and round, until memory is full. Its disk space is none."""

    def __init__(self, path: Path) -> None:
        total = memory("MemTotal")
        self._path = path
        self._low = total // 12  # the system keeps about so much free by itself
        self._size = (total + total // 8) // _CHECK * _CHECK
        self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC)
        os.truncate(self._fd, self._size)
        self._at = 0

    def close(self) -> None:
        os.close(self._fd)
        self._path.unlink(missing_ok=True)

    def fill(self) -> None:
        """At most one round, so that a limit on this process alone ends it too."""
        piece = bytearray(_PIECE)
        for done in range(0, self._size, _PIECE):
            if done % _CHECK == 0 and memory("MemFree") < self._low:
                return
            os.preadv(self._fd, [piece], self._at)
            self._at = (self._at + _PIECE) % self._size


def memory(field: str) -> int:
    """Bytes of a line of /proc/meminfo, such as MemFree."""
    lines = Path("/proc/meminfo").read_text().splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith(f"{field}:"))
