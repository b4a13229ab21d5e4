"""Factors that are zero: the report says that they change nothing."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from building import HIDDEN, Q0, Q1, arrays_of, pair, plan_of, qs, run, same_bits, save_adapter

from adapterhub import merging as merge
from adapterhub.merging import output


def zeroed(*modules: str) -> dict[str, np.ndarray]:
    arrays = qs()
    for module in modules:
        arrays[f"base_model.model.{module}.lora_B.weight"][:] = 0
    return arrays


def fates(out: Path) -> dict[str, str]:
    return {f["tensor"]: f["fate"] for f in merge.read_report(out)["fates"]}


def test_a_zero_lora_b_is_told_in_the_report_and_the_fates(base: Path, tmp_path: Path) -> None:
    adapter = save_adapter(tmp_path / "zero", zeroed(Q1))
    report = run(base, tmp_path / "out", adapter)
    assert report.notes == ["zero changes nothing in 1 of its modules: their lora_B is all zero"]
    told = fates(tmp_path / "out")
    assert told[f"{Q1}.lora_A"] == (
        f"merged into {Q1}.weight: lora_B is all zero, so nothing changed"
    )
    assert told[f"{Q0}.lora_B"] == f"merged into {Q0}.weight"
    before, after = arrays_of(base), arrays_of(tmp_path / "out")
    assert same_bits(before[f"{Q1}.weight"], after[f"{Q1}.weight"])


def test_each_adapter_is_counted_for_itself(base: Path, tmp_path: Path) -> None:
    one = save_adapter(tmp_path / "one", zeroed(Q0, Q1))
    two = save_adapter(tmp_path / "two", pair(Q0, HIDDEN, HIDDEN, seed=9))
    report = run(base, tmp_path / "out", two, one)
    assert report.notes == ["one changes nothing in 2 of its modules: their lora_B is all zero"]


def test_a_resumed_merge_tells_it_too(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    adapter = save_adapter(tmp_path / "zero", zeroed(Q0, Q1))
    run(base, tmp_path / "want", adapter)
    original = output.Partial.record

    def once(self: output.Partial, entry: output.Entry) -> None:
        if self.whole:
            raise KeyboardInterrupt
        original(self, entry)

    with monkeypatch.context() as patch:
        patch.setattr(output.Partial, "record", once)
        with pytest.raises(KeyboardInterrupt):
            run(base, tmp_path / "out", adapter)
    merge.run(plan_of(base, adapter), tmp_path / "out", resume=True)
    report = (tmp_path / "out" / "adapterhub.json").read_bytes()
    assert report == (tmp_path / "want" / "adapterhub.json").read_bytes()
    assert "nothing changed" in report.decode()
