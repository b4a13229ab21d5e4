"""Native adapters in the registry: added, shown, identified, given back, merged."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from regkit import HIDDEN, QUERY, numbers, save_base, write_tensors

import adapterhub as ah
from adapterhub.errors import BaseMismatch
from adapterhub.tensorfile import read_header

NAME = f"{QUERY}.weight"


def said(path: Path, shape: tuple[int, ...]) -> Path:
    path.mkdir()
    arrays = {":intrinsic_vector": numbers(1, 6), f"{QUERY}:weight.scale": numbers(2, 1)}
    write_tensors(path / "adapter_model.safetensors", arrays)
    config = {
        "adapterhub": 1,
        "method": "intrinsic_said",
        "algorithm": "fastfood-v1",
        "seed": 3,
        "shapes": {NAME: list(shape)},
    }
    (path / "adapter_config.json").write_text(json.dumps(config))
    return path


def test_one_is_kept_and_merged(tmp_path: Path) -> None:
    base = save_base(tmp_path / "base")
    with ah.open(tmp_path / "home") as registry:
        version = registry.add(said(tmp_path / "a", (HIDDEN, HIDDEN)), name="it", base=base)
        seen = registry.inspect("it")
        assert (seen.format, seen.method, seen.parameters) == ("native", "intrinsic_said", 7)
        assert seen.targets == ("bert.encoder.layer.*.attention.self.query",)
        assert not [problem for problem in seen.problems if problem.fatal]
        registry.export("it", tmp_path / "exported")
        for name in ("adapter_config.json", "adapter_model.safetensors"):
            assert (tmp_path / "exported" / name).read_bytes() == (
                tmp_path / "a" / name
            ).read_bytes()
        report = ah.merge(base, ["it"], out=tmp_path / "out", registry=registry)
        assert report.reproducible and str(version)
    before, after = (
        {n: t.read() for n, t in read_header(p / "model.safetensors").tensors.items()}
        for p in (base, tmp_path / "out")
    )
    stored = NAME.removeprefix("bert.")
    changed = {name for name in before if not np.array_equal(before[name], after[name])}
    assert changed == {stored}


def test_the_wrong_base_is_refused(tmp_path: Path) -> None:
    base = save_base(tmp_path / "base")
    with (
        ah.open(tmp_path / "home") as registry,
        pytest.raises(BaseMismatch, match="1 mismatch") as caught,
    ):
        registry.add(said(tmp_path / "a", (HIDDEN, 2 * HIDDEN)), name="it", base=base)
    assert "the adapter is for [8, 16], the base has [8, 8]" in caught.value.details[0]
