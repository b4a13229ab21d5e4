"""Runs a verb of composing again and again, each time killed before another change of the disk.

    compose_driver.py VERB TO FOLDER INPUT INPUT

VERB: compose, resize or extract. TO: name or out. Uses the homes FOLDER/1/home, FOLDER/2/home … and
FOLDER/N/out; prints how many were killed.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import killing

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


def main(verb: str, to: str, folder: Path, *inputs: str) -> None:
    def killed(place: Path, number: int) -> None:
        with api.open(place / "home"):
            pass
        strike = killing.at(number)

        def hook(event: str, args: tuple[Any, ...]) -> None:
            if event in _CHANGES or (event == "open" and (args[2] or 0) & _WRITES):
                strike()

        sys.addaudithook(hook)
        made(verb, to, place, list(inputs))

    made(verb, to, folder / "0", list(inputs))  # so that no child imports anything
    killing.every_step(folder, killed)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], Path(sys.argv[3]), *sys.argv[4:])
