"""The attach bench, whole, on a tiny model: what it prints and what it leaves behind."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

pytest.importorskip("peft")

import bench_attach


def test_it_switches_restores_and_tells(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("ADAPTERHUB_HOME", "HF_HUB_OFFLINE"):
        monkeypatch.setenv(name, str(tmp_path / "unused"))  # so that the bench's are undone
    record = tmp_path / "figures.json"
    bench_attach.main(
        ["--billions", "0.0004", "--rounds", "2", "--dir", str(tmp_path), "--json", str(record)]
    )
    printed = capsys.readouterr().out
    figures = json.loads(record.read_text())
    assert [len(figures[name]) for name in ("switch", "switch/base", "peft")] == [2, 2, 2]
    assert figures["parameters_lost"]["adapterhub"] == 0
    assert figures["restore_bytes"] > 0
    assert "or 0 with restore='base'" in " ".join(printed.split())
    assert "target 5x:" in printed
    assert list(tmp_path.glob("bench-attach-*")) == []


def test_it_refuses_what_does_not_fit_into_memory() -> None:
    with pytest.raises(SystemExit, match="give fewer --billions"):
        bench_attach.refuse_small(10**15)
