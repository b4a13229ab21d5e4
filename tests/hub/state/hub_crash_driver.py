"""Runs one change again and again, each time killed before another call or statement.

    hub_crash_driver.py TEMPLATE FOLDER SCENARIO

Copies the home TEMPLATE to FOLDER/1, FOLDER/2 …, and prints how many copies were killed.
"""

from __future__ import annotations

import sys
from pathlib import Path

import killing
import statekit

from adapterhub.hub.state.state import Hub
from adapterhub.store import Store, files


def scenario(hub: Hub, name: str) -> None:
    if name == "create":
        hub.create(statekit.other("new/one"))
        return
    repository = hub.repositories.get(statekit.ID)
    if name == "commit":
        statekit.commit(hub, repository, {"a": b"2", "d/new": b"3"}, gone=["b"])
    elif name == "propose":
        statekit.commit(hub, repository, {"a": b"2"}, create_pr=True)
    elif name == "merge":
        hub.merge(repository, 1, "ann")
    elif name == "squash":
        hub.squash(repository, "main", "all", "ann")
    elif name == "delete":
        hub.repositories.delete(repository)


def changed(home: Path, name: str, number: int) -> None:
    """`name`, killed at its `number`-th call or statement."""
    hook = killing.at(number)
    hub = Hub(Store(home))
    files.HOOK = hook
    hub._database.connection().set_trace_callback(hook)
    scenario(hub, name)


def main(template: Path, folder: Path, name: str) -> None:
    killing.every_step(folder, lambda home, number: changed(home, name, number), template)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3])
