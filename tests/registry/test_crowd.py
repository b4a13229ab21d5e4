"""Sixteen processes add, tag, go back and collect at once: nothing is lost."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import regkit

from adapterhub import api

HERE = Path(__file__).parent
PROCESSES, ROUNDS = 16, 12


def test_sixteen_processes_lose_nothing(tmp_path: Path) -> None:
    for number in range(8):
        regkit.save_adapter(tmp_path / "adapters" / str(number), regkit.lora(number))
    home = tmp_path / "home"
    arguments = [str(home), str(tmp_path / "adapters")]
    crowd = [
        subprocess.Popen(
            [sys.executable, HERE / "crowd_member.py", *arguments, str(number), str(ROUNDS)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for number in range(PROCESSES)
    ]
    said = [member.communicate(timeout=300) for member in crowd]
    assert [err for _, err in said] == [""] * PROCESSES
    assert [member.returncode for member in crowd] == [0] * PROCESSES
    added = {line.split()[1] for out, _ in said for line in out.splitlines()}
    assert len(added) > PROCESSES
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
