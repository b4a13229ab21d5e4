"""Runs `Registry.add` again and again, each time killed before another step of the store.

    add_driver.py TEMPLATE FOLDER ADAPTER BASE

Copies the home TEMPLATE to FOLDER/1, FOLDER/2 …, and prints how many copies were killed.
"""

from __future__ import annotations

import os
import shutil
import signal
import sys
from pathlib import Path

from adapterhub import api
from adapterhub.store import files


def killed_at(home: Path, number: int, adapter: Path, base: Path) -> None:
    steps = 0

    def hook(kind: str, path: Path) -> None:
        nonlocal steps
        steps += 1
        if steps == number:
            os.kill(os.getpid(), signal.SIGKILL)

    with api.open(home) as registry:
        files.HOOK = hook
        registry.add(adapter, name="a", tag="prod", base=base)


def main(template: Path, folder: Path, adapter: Path, base: Path) -> None:
    first = folder / "0"  # so that no child imports anything that the others import again
    shutil.copytree(template, first)
    with api.open(first) as registry:
        registry.add(adapter, name="a", tag="prod", base=base)
    for number in range(1, 200):
        home = folder / str(number)
        shutil.copytree(template, home)
        child = os.fork()
        if child == 0:
            try:
                killed_at(home, number, adapter, base)
            except BaseException as error:
                print(error, file=sys.stderr)
                os._exit(1)
            os._exit(0)
        _, status = os.waitpid(child, 0)
        if os.WIFEXITED(status):
            print(number - 1)
            sys.exit(os.WEXITSTATUS(status))
    sys.exit(2)


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
