"""Runs one change again and again, each time killed before another system call.

    crash_driver.py TEMPLATE FOLDER SCENARIO kill|torn

Copies the home TEMPLATE to FOLDER/1, FOLDER/2 …, and prints how many copies were killed. In
`torn`, half of the bytes of the write get through before the kill.
"""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path

import killing
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


def changed(home: Path, name: str, number: int, torn: bool) -> None:
    """`name`, killed at its `number`-th call; or within that write."""

    def half(fd: int, data: bytes) -> int:
        os.write(fd, bytes(data[: len(data) // 2]))
        killing.kill()
        return 0

    def tear() -> None:
        files._write = half

    strike = killing.at(number, tear if torn else killing.kill)

    def hook(kind: str, path: Path) -> None:
        if not torn or kind == "write":
            strike()

    store = Store(home)
    store.names()
    files.HOOK = hook
    scenario(store, name)


def main(template: Path, folder: Path, name: str, mode: str) -> None:
    first = folder / "0"  # so that no child imports anything that the others import again
    shutil.copytree(template, first)
    with Store(first) as store:
        scenario(store, name)
    killing.every_step(folder, lambda home, n: changed(home, name, n, mode == "torn"), template)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), *sys.argv[3:])
