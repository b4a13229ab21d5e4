"""The bench of composing, whole, on a tiny model: what it measures and what it leaves behind."""

from __future__ import annotations

import json
from pathlib import Path

import bench_compose
import pytest


@pytest.mark.slow
def test_it_extracts_and_compares_with_the_exact_svd(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    record = tmp_path / "figures.json"
    given = ["extract", "--billions", "0.0004", "--rank", "4", "--dir", str(tmp_path)]
    bench_compose.main([*given, "--json", str(record)])
    figures = json.loads(record.read_text())["extract"]
    assert figures.keys() == {"decaying", "flat"}
    for one in figures.values():
        assert one["wall"] > 0 and one["memory"]["anonymous"] > 0
        assert len(one["residual_ratios"]) == 7
        assert all(0.9999 < ratio < 1.02 for ratio in one["residual_ratios"].values())
    assert figures["decaying"]["lost"] < figures["flat"]["lost"]
    printed = capsys.readouterr().out
    assert "target residual × 1.02: reached" in printed
    assert list(tmp_path.glob("bench-compose-*")) == []


@pytest.mark.slow
def test_it_sums_and_looks_at_elements(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("peft")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    record = tmp_path / "figures.json"
    given = ["sum", "elements", "--layers", "1", "--side", "128", "--rounds", "1"]
    bench_compose.main([*given, "--dir", str(tmp_path), "--json", str(record)])
    figures = json.loads(record.read_text())
    for one in figures["sum"]["layer"].values():
        assert one["apart"] < 1e-5  # PEFT's own arithmetic is fp32
        assert one["ours"] > 0 and one["peft"] > 0
    assert figures["elements"]["ties"]["wall"] > 0
    printed = capsys.readouterr().out
    assert "target 10 s: reached" in printed and "target 100 × PEFT:" in printed
    assert list(tmp_path.glob("bench-compose-*")) == []


def test_an_unknown_part_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        bench_compose.parse(["extracts"])
    assert "there is no part 'extracts'" in capsys.readouterr().err
