"""One of many processes that use a registry at once; prints the versions that it added.

    crowd_member.py HOME FOLDER NUMBER ROUNDS

The adapters lie in FOLDER, made beforehand, so that several processes add the same bytes.
"""

from __future__ import annotations

import random
import sys
from pathlib import Path

from adapterhub import api
from adapterhub.errors import NotFound
from adapterhub.registry import Registry

EARLY = ("no adapter is called", "has nothing to go back to")


def act(registry: Registry, rng: random.Random, number: int, adapters: list[Path]) -> None:
    name = rng.choice((f"own-{number}", "team/shared"))
    choice = rng.randrange(6)
    if choice < 2:
        added = registry.add(rng.choice(adapters), name=name, tag=f"by-{number}")
        print("added", added.version, flush=True)
    elif choice == 2:
        registry.tag(name, f"t{number}")
    elif choice == 3:
        registry.rollback(name, "latest")
    elif choice == 4:
        registry.path(name)
        registry.load(name)
    else:
        registry.gc(grace_seconds=0)


def main(home: Path, folder: Path, number: int, rounds: int) -> None:
    rng = random.Random(number)
    adapters = sorted(folder.iterdir())
    with api.open(home) as registry:
        for _ in range(rounds):
            try:
                act(registry, rng, number, adapters)
            except NotFound as error:  # too early: nobody has added a version, or only one
                if not any(text in error.message for text in EARLY):
                    raise


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4]))
