"""Runs `Registry.add` again and again, each time killed before another step of the store.

    add_driver.py TEMPLATE FOLDER ADAPTER BASE

Copies the home TEMPLATE to FOLDER/1, FOLDER/2 …, and prints how many copies were killed.
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import killing

from adapterhub import api
from adapterhub.store import files


def main(template: Path, folder: Path, adapter: Path, base: Path) -> None:
    def added(home: Path, number: int = 0) -> None:
        with api.open(home) as registry:
            files.HOOK = killing.at(number)
            registry.add(adapter, name="a", tag="prod", base=base)

    first = folder / "0"  # so that no child imports anything that the others import again
    shutil.copytree(template, first)
    added(first)
    killing.every_step(folder, added, template)


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
