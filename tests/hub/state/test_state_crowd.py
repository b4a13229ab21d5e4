"""Many at once, from threads and from processes; and kills in the middle."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import hub_crash_driver
import killing
import pytest
import statekit

from adapterhub.hub.state.errors import Conflict, Stale
from adapterhub.hub.state.model import Committed
from adapterhub.hub.state.repositories import Repository
from adapterhub.hub.state.state import Hub
from adapterhub.store import Store

HERE = Path(__file__).parent


def history(hub: Hub, repository: Repository) -> list[str]:
    """Ids of main, the oldest first; checks that it is one line."""
    log = hub.log(repository, "main", limit=1000)
    commits = log.commits[::-1]
    assert [c.parent for c in commits] == [None, *(c.id for c in commits[:-1])]
    assert [c.depth for c in commits] == list(range(1, log.total + 1))
    return [c.id for c in commits]


def test_a_hundred_commits_to_one_branch(hub: Hub, repository: Repository) -> None:
    start = hub.commit_of(repository, "main").id
    digests = [hub.contents.put_bytes(repository, b"%d" % n).digest for n in range(100)]
    ready = threading.Barrier(100)

    def push(number: int) -> Committed | Stale:
        request = statekit.Request(
            (statekit.Add(f"f{number}", digests[number]),),
            f"c{number}",
            parent=start if number % 2 else None,
        )
        ready.wait()
        try:
            return hub.commit(repository, "main", request, "ann")
        except Stale as error:
            return error

    with ThreadPoolExecutor(100) as pool:
        done = list(pool.map(push, range(100)))
    accepted = [each.commit.id for each in done if isinstance(each, Committed)]
    stale = [each for each in done if isinstance(each, Stale)]
    assert 50 <= len(accepted) <= 51 and len(accepted) + len(stale) == 100
    assert sorted(history(hub, repository)) == sorted([start, *accepted])
    files = {f"f{n}": b"%d" % n for n, each in enumerate(done) if isinstance(each, Committed)}
    assert statekit.read(hub, repository) == files


def test_a_request_sent_twice_at_once_is_carried_out_once(hub: Hub, repository: Repository) -> None:
    start = hub.commit_of(repository, "main").id
    with ThreadPoolExecutor(20) as pool:
        jobs = [
            pool.submit(statekit.commit, hub, repository, {"a": b"1"}, parent=start)
            for _ in range(20)
        ]
        done = [job.result() for job in jobs]
    assert len({each.commit.id for each in done}) == 1
    assert [each.repeated for each in done].count(False) == 1


def test_one_of_many_makes_the_repository(hub: Hub) -> None:
    def make(number: int) -> bool:
        try:
            hub.create(statekit.other("ns/one" if number % 2 else "NS/One"))
        except Conflict:
            return False
        return True

    with ThreadPoolExecutor(20) as pool:
        assert list(pool.map(make, range(20))).count(True) == 1


def start(home: Path, name: str, count: int, steps: str) -> subprocess.Popen[str]:
    words = [sys.executable, str(HERE / "commit_worker.py"), str(home), name, str(count), steps]
    return subprocess.Popen(words, stdout=subprocess.PIPE, text=True)


@pytest.mark.parametrize("steps", ["plain", "parent"])
def test_processes_share_a_branch(
    hub: Hub, repository: Repository, store: Store, steps: str
) -> None:
    workers = [start(store.home, f"w{n}", 6, steps) for n in range(4)]
    said = [worker.communicate()[0].split() for worker in workers]
    assert [worker.returncode for worker in workers] == [0] * 4
    made = {id for words in said for id in words[::2]}
    assert len(made) == 24 and set(history(hub, repository)) > made
    found = statekit.read(hub, repository)
    del found["last"]
    assert found == {f"w{n}/{k}": f"w{n} {k}".encode() for n in range(4) for k in range(6)}


@pytest.mark.parametrize(
    "rounds", [pytest.param(3, id="few"), pytest.param(25, id="many", marks=pytest.mark.slow)]
)
def test_a_killed_server_keeps_what_it_had_accepted(
    store: Store, hub: Hub, repository: Repository, rounds: int
) -> None:
    accepted: list[str] = []
    for number in range(rounds):
        worker = start(store.home, f"r{number}", 10_000, "plain")
        assert worker.stdout is not None
        lines = [worker.stdout.readline() for _ in range(3)]
        time.sleep(0.0037 * (number % 7))
        worker.send_signal(signal.SIGKILL)
        lines += worker.communicate()[0].splitlines()
        whole = [line.split() for line in lines if len(line.split()) == 2]
        accepted += [id for id, _ in whole]
        ids = history(hub, repository)
        assert set(accepted) <= set(ids)
        files = statekit.read(hub, repository)
        mine = [path for path in files if path.startswith(f"r{number}/")]
        assert len(whole) <= len(mine) <= len(whole) + 1
        assert all(files[path] == path.replace("/", " ").encode() for path in mine)
    assert hub._database.rows("PRAGMA integrity_check") == [("ok",)]
    assert hub._database.rows("PRAGMA foreign_key_check") == []
    statekit.commit(hub, repository, {"after": b"all"})


def seen(home: Path) -> dict[str, Any]:
    """All that anyone can ask of a hub, times and ids of new commits aside."""
    found: dict[str, Any] = {}
    with Store(home) as store, Hub(store) as hub:
        assert hub._database.rows("PRAGMA foreign_key_check") == []
        for repository in hub.repositories.list(readable=None):
            refs = {ref.name for ref in hub.refs.list(repository)}
            found[str(repository.id)] = {
                "files": {name: statekit.read(hub, repository, name) for name in refs},
                "log": [(c.title, c.depth) for c in hub.log(repository, "main").commits],
                "pulls": [(p.number, p.status) for p in hub.pulls.list(repository)],
                "used": hub.contents.used(repository),
                "commits": hub._database.rows("SELECT count(*) FROM commits"),
                "changes": hub._database.rows("SELECT count(*) FROM changes"),
            }
    return found


@pytest.mark.parametrize(
    "change",
    [
        "commit",
        "merge",
        *(pytest.param(n, marks=pytest.mark.slow) for n in ("create", "propose", "squash")),
        pytest.param("delete", marks=pytest.mark.slow),
    ],
)
def test_a_kill_before_any_call_leaves_the_old_or_the_new_state(
    tmp_path: Path, change: str
) -> None:
    home = tmp_path / "template"
    with Store(home) as store, Hub(store) as hub:
        repository = hub.create(statekit.ID)
        statekit.commit(hub, repository, {"a": b"1", "b": b"1"})
        statekit.commit(hub, repository, {"p": b"1"}, create_pr=True, title="P")
        statekit.commit(hub, repository, {"a": b"1.5"})
    for empty in (home / "manifests" / "sha256").iterdir():
        empty.rmdir()  # 256 of them, to be copied again and again
    old = seen(home)
    killed = killing.drive(HERE / "hub_crash_driver.py", home, tmp_path, change)
    with Store(home) as store, Hub(store) as hub:
        hub_crash_driver.scenario(hub, change)
    new = seen(home)
    assert killed > 3 and old != new
    states = [seen(tmp_path / str(number)) for number in range(1, killed + 1)]
    assert states[0] == old and all(state in (old, new) for state in states)
    switch = next((n for n, state in enumerate(states) if state == new), killed)
    assert all(state == new for state in states[switch:])
    again = tmp_path / str(max(killed // 2, 1))
    with Store(again) as store, Hub(store) as hub:
        hub_crash_driver.scenario(hub, change)
    assert seen(again) == new
