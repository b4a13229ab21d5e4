"""Runs a verb of composing again and again, each time killed before another change of the disk.

    compose_driver.py VERB TO FOLDER INPUT INPUT

VERB: compose, resize or extract. TO: name or out. Uses the homes FOLDER/1/home, FOLDER/2/home … and
FOLDER/N/out; prints how many were killed.
"""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path
from typing import Any

from adapterhub import api

_WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT
_CHANGES = ("os.rename", "os.mkdir", "os.remove", "os.rmdir", "os.chmod", "os.truncate", "os.utime")


def made(verb: str, to: str, place: Path, inputs: list[str]) -> None:
    target: dict[str, Any] = {"name": "both"} if to == "name" else {"out": place / "out"}
    with api.open(place / "home") as registry:
        if verb == "compose":
            api.compose([inputs[0], (inputs[1], 0.5)], registry=registry, **target)
        elif verb == "resize":
            api.resize(inputs[0], rank=1, registry=registry, **target)
        else:
            api.extract(*inputs, rank=2, registry=registry, **target)


def kill_at(number: int) -> None:
    steps = 0

    def hook(event: str, args: tuple[Any, ...]) -> None:
        nonlocal steps
        if event in _CHANGES or (event == "open" and (args[2] or 0) & _WRITES):
            steps += 1
            if steps == number:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(hook)


def main(verb: str, to: str, folder: str, *inputs: str) -> None:
    made(verb, to, Path(folder, "0"), list(inputs))  # so that no child imports anything
    for number in range(1, 500):
        place = Path(folder, str(number))
        with api.open(place / "home"):
            pass
        child = os.fork()
        if child == 0:
            kill_at(number)
            try:
                made(verb, to, place, list(inputs))
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
    main(*sys.argv[1:])
