"""Commits until it is killed or has done its share, and prints what was accepted.

    commit_worker.py HOME NAME COUNT STEPS

STEPS `parent`: each commit names the head it saw, and tries again where that is stale.
"""

from __future__ import annotations

import sys

import statekit

from adapterhub.hub.state.errors import Stale
from adapterhub.hub.state.state import Hub
from adapterhub.store import Store


def main(home: str, name: str, count: int, steps: str) -> None:
    with Store(home) as store, Hub(store) as hub:
        repository = hub.repositories.get(statekit.ID)
        for number in range(count):
            files = {f"{name}/{number}": f"{name} {number}".encode(), "last": name.encode()}
            while True:
                head = hub.commit_of(repository, "main").id if steps == "parent" else None
                try:
                    made = statekit.commit(
                        hub, repository, files, title=f"{name} {number}", parent=head
                    )
                except Stale:
                    continue
                print(made.commit.id, number, flush=True)
                break


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]), sys.argv[4])
