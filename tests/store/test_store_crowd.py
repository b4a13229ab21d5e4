from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import storekit

from adapterhub.store import Store

WORKER = Path(__file__).with_name("crowd_worker.py")


@pytest.mark.parametrize(
    "processes", [pytest.param(4, id="few"), pytest.param(16, id="many", marks=pytest.mark.slow)]
)
def test_processes_at_once_lose_nothing(processes: int, tmp_path: Path) -> None:
    home = tmp_path / "home"
    command = [sys.executable, str(WORKER), str(home)]
    crowd = [
        subprocess.Popen(
            [*command, str(number), "12"],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for number in range(processes)
    ]
    results = [process.communicate(timeout=120) for process in crowd]
    assert [process.returncode for process in crowd] == [0] * processes, results
    lines = [line for out, _ in results for line in out.splitlines()]
    assert [line for line in lines if line.startswith("note")] == []
    made = {line.removeprefix("event ") for line in lines}
    assert len(made) > 4 * processes
    with Store(home) as store:
        kept = [event.id for name in store.names() for event in store.history(name)]
        assert sorted(kept) == sorted(made)
        storekit.check_home(store)
        before = store.list(limit=1000)
        store.reindex()
        assert store.list(limit=1000) == before
