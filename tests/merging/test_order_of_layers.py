"""Methods whose layers share by their order in the model, which the base's class tells."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from building import opened, read_adapter
from test_methods_against_peft import (
    Case,
    made,
)
from test_methods_against_peft import (
    test_a_merge_computes_what_peft_computes as check,
)

from adapterhub import merging as merge
from adapterhub.errors import NotMergeable
from adapterhub.merging import Source
from adapterhub.registry import around

pytest.importorskip("torch")
pytest.importorskip("peft")

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning")
SOME = {"target_modules": ["q_proj", "v_proj", "down_proj"]}
THETA = {"theta_d_length": 40, "init_theta_d_bound": 0.3}
CASES = [
    Case("tinylora-kinds", "TinyLoraConfig", {**SOME, "r": 2, "u": 5}),
    Case(
        "tinylora-groups",
        "TinyLoraConfig",
        {**SOME, "r": 2, "u": 5, "weight_tying": 0.6, "save_projection": False},
        exact=False,
    ),
    Case("unilora-theta", "UniLoraConfig", {**SOME, **THETA}, exact=False),
    Case(
        "unilora-pattern",
        "UniLoraConfig",
        {"target_modules": r".*\.(up|down|k)_proj", "proj_seed": 7, **THETA},
        exact=False,
    ),
    Case(
        "unilora-conv1d",
        "UniLoraConfig",
        {"target_modules": ["c_attn", "mlp.c_proj"], **THETA},
        "gpt2",
        exact=False,
    ),
]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.id)
def test_a_merge_that_asks_for_the_order(case: Case, tmp_path: Path) -> None:
    check(case, tmp_path)


def planned(path: Path) -> Any:
    return merge.plan(opened(path / "base"), [Source("it", read_adapter(path / "adapter"))])


@pytest.mark.parametrize(
    ("case", "said"), [(CASES[0], "order of the layers"), (CASES[2], "of this base that is not")]
)
def test_a_base_whose_order_nobody_knows(
    case: Case, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made(case, tmp_path)
    monkeypatch.setattr(around, "ordered", lambda *_: None)
    with pytest.raises(NotMergeable, match=said):
        planned(tmp_path)


def test_layers_that_are_picked_by_number(tmp_path: Path) -> None:
    fields = {"target_modules": ["q_proj"], "layers_to_transform": [1], **THETA}
    made(Case("unilora-layer", "UniLoraConfig", fields), tmp_path)
    with pytest.raises(NotMergeable, match=r"not their places \(save_indices\), and which layers"):
        planned(tmp_path)
