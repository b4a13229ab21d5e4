"""Runs one change again and again, each time killed before another call or statement.

    hub_crash_driver.py TEMPLATE FOLDER SCENARIO

Copies the home TEMPLATE to FOLDER/1, FOLDER/2 …, and prints how many copies were killed.
"""

from __future__ import annotations

import os
import shutil
import signal
import sys
from pathlib import Path

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


def killed_at(home: Path, name: str, number: int) -> None:
    calls = 0

    def count(*_: object) -> None:
        nonlocal calls
        calls += 1
        if calls == number:
            os.kill(os.getpid(), signal.SIGKILL)

    hub = Hub(Store(home))
    files.HOOK = count
    hub._database.connection().set_trace_callback(count)
    scenario(hub, name)


def main(template: Path, folder: Path, name: str) -> None:
    for number in range(1, 1000):
        home = folder / str(number)
        shutil.copytree(template, home)
        child = os.fork()
        if child == 0:
            try:
                killed_at(home, name, number)
            except BaseException:
                os._exit(1)
            os._exit(0)
        _, status = os.waitpid(child, 0)
        if os.WIFEXITED(status):
            print(number - 1)
            sys.exit(os.WEXITSTATUS(status))
    sys.exit(2)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3])
