"""Runs a merge again and again, each time killed before another step of its output.

    merge_driver.py BASE ADAPTER FOLDER

Writes FOLDER/1, FOLDER/2 …, and prints how many were killed.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import killing
from building import opened, source

from adapterhub import merging as merge

_STEPS = ((os, "fsync"), (os, "rename"), (Path, "replace"), (Path, "unlink"), (Path, "mkdir"))


def counted(owner: Any, name: str, strike: Callable[..., None]) -> None:
    action = getattr(owner, name)

    def call(*args: Any, **kwargs: Any) -> Any:
        strike()
        return action(*args, **kwargs)

    setattr(owner, name, call)


def main(base: Path, adapter: Path, folder: Path) -> None:
    plan = merge.plan(opened(base), [source(adapter)])

    def merged(out: Path, number: int) -> None:
        strike = killing.at(number)
        for owner, name in _STEPS:
            counted(owner, name, strike)
        merge.run(plan, out)

    killing.every_step(folder, merged)


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
