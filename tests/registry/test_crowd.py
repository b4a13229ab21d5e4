"""Many processes add, tag, go back and collect at once: nothing is lost."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import regkit

from adapterhub import api

HERE = Path(__file__).parent


@pytest.mark.parametrize(
    ("processes", "rounds"),
    [
        pytest.param(4, 12, id="few"),
        pytest.param(16, 12, id="many", marks=pytest.mark.slow),
    ],
)
def test_processes_at_once_lose_nothing(processes: int, rounds: int, tmp_path: Path) -> None:
    for number in range(8):
        regkit.save_adapter(tmp_path / "adapters" / str(number), regkit.lora(number))
    home = tmp_path / "home"
    arguments = [str(home), str(tmp_path / "adapters")]
    crowd = [
        subprocess.Popen(
            [sys.executable, HERE / "crowd_member.py", *arguments, str(number), str(rounds)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for number in range(processes)
    ]
    said = [member.communicate(timeout=300) for member in crowd]
    assert [err for _, err in said] == [""] * processes
    assert [member.returncode for member in crowd] == [0] * processes
    added = {line.split()[1] for out, _ in said for line in out.splitlines()}
    assert len(added) > processes
    with api.open(home) as registry:
        assert registry.verify()["problems"] == []
        kept = {
            f"{name}@{version['digest']}"
            for name in registry.store.names()
            for version in registry.show(name)["versions"]
        }
        assert kept == added
        rows = {row.name: (row.digest, dict(row.tags)) for row in registry.list(limit=1000)}
        for name, (digest, tags) in rows.items():
            shown = registry.show(name)
            assert (shown["digest"], shown["tags"]) == (digest, tags)
        before = registry.list(limit=1000)
        registry.gc(grace_seconds=0)
        registry.reindex()
        assert registry.list(limit=1000) == before
        assert registry.verify()["problems"] == []
        for version in sorted(added)[:5]:
            assert registry.load(version).digest == version.partition("@")[2]
