"""Adapters that stand beside a model's modules are added with their base, whatever their kind."""

from __future__ import annotations

from pathlib import Path

import pytest

from adapterhub import api
from adapterhub.errors import BaseMismatch, NotMergeable

GOLDEN = Path(__file__).parents[1] / "golden" / "adapters"
CASES = sorted(
    f"{config.parent.parent.name}/{config.parent.name}"
    for config in GOLDEN.glob("*/*/adapter_config.json")
)


@pytest.mark.slow
@pytest.mark.parametrize("architecture", sorted({case.partition("/")[0] for case in CASES}))
def test_every_golden_adapter_with_its_base(home: Path, architecture: str, tmp_path: Path) -> None:
    base = GOLDEN / architecture / "base"
    with api.open(home) as registry:
        for case in CASES:
            if case.partition("/")[0] != architecture:
                continue
            registry.add(GOLDEN / case, name=case, base=base)
            assert registry.show(case)
            with pytest.raises(NotMergeable, match="cannot be merged:") as caught:
                api.merge(base, [case], out=tmp_path / "out", registry=registry)
            assert "ah.attach(model, REF)" in caught.value.remedy


@pytest.mark.parametrize("case", ["bert/houlsby", "bert/compacter_own", "bert/mam"])
def test_another_width_is_still_refused(home: Path, tmp_path: Path, case: str) -> None:
    transformers = pytest.importorskip("transformers")
    config = transformers.AutoConfig.from_pretrained(GOLDEN / "bert" / "base")
    config.hidden_size = 16
    transformers.BertModel(config).save_pretrained(tmp_path / "wide")
    with api.open(home) as registry, pytest.raises(BaseMismatch, match="does not fit the base"):
        registry.add(GOLDEN / case, name="a", base=tmp_path / "wide")
