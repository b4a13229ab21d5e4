"""Runs one change again and again, each time killed before another system call.

    crash_driver.py TEMPLATE FOLDER SCENARIO kill|torn

Copies the home TEMPLATE to FOLDER/1, FOLDER/2 …, and prints how many copies were killed. In
`torn`, half of the bytes of the write get through before the kill.
"""

from __future__ import annotations

import os
import shutil
import signal
import sys
from pathlib import Path

import storekit

from adapterhub.store import Store, files


def scenario(store: Store, name: str) -> None:
    if name == "add":
        storekit.add(store, "a", 2, tags=["prod"], card={"description": "second"})
    elif name == "new":
        storekit.add(store, "team/fresh", 2)
    elif name == "mv":
        store.rename("a", "team/b")
    elif name == "rm":
        store.remove_name("a")


def killed_at(home: Path, name: str, number: int, torn: bool) -> None:
    calls = 0

    def half(fd: int, data: bytes) -> int:
        os.write(fd, bytes(data[: len(data) // 2]))
        os.kill(os.getpid(), signal.SIGKILL)
        return 0

    def hook(kind: str, path: Path) -> None:
        nonlocal calls
        calls += not torn or kind == "write"
        if calls != number:
            return
        if torn:
            files._write = half
        else:
            os.kill(os.getpid(), signal.SIGKILL)

    store = Store(home)
    store.names()
    files.HOOK = hook
    scenario(store, name)


def main(template: Path, folder: Path, name: str, mode: str) -> None:
    first = folder / "0"  # so that no child imports anything that the others import again
    shutil.copytree(template, first)
    with Store(first) as store:
        scenario(store, name)
    for number in range(1, 200):
        home = folder / str(number)
        shutil.copytree(template, home)
        child = os.fork()
        if child == 0:
            try:
                killed_at(home, name, number, mode == "torn")
            except BaseException:
                os._exit(1)
            os._exit(0)
        _, status = os.waitpid(child, 0)
        if os.WIFEXITED(status):
            print(number - 1)
            sys.exit(os.WEXITSTATUS(status))
    sys.exit(2)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), *sys.argv[3:])
