"""Methods that PEFT itself computes layer by layer, against its forward pass on whole models."""

from __future__ import annotations

from pathlib import Path

import pytest
from test_methods_against_peft import (
    Case,
)
from test_methods_against_peft import (
    test_a_merge_computes_what_peft_computes as check,
)

pytest.importorskip("torch")
pytest.importorskip("peft")

PROJECTIONS = ["q_proj", "v_proj", "down_proj"]
SOME = {"target_modules": PROJECTIONS}
GPT2 = {"target_modules": ["c_attn", "mlp.c_proj"]}
CASES = [
    Case("deft", "DeftConfig", {**SOME, "r": 4}, exact=False),
    Case("deft-qr", "DeftConfig", {**SOME, "r": 4, "decomposition_method": "qr", "alpha": 6}),
    Case("deft-para", "DeftConfig", {**SOME, "r": 3, "para": True}),
    Case("deft-conv1d", "DeftConfig", {**GPT2, "r": 4}, "gpt2"),
    Case("frod", "FrodConfig", {**SOME, "sparse_rate": 0.2}),
    Case("frod-conv1d", "FrodConfig", {**GPT2, "sparse_rate": 0.2}, "gpt2"),
    Case("glora", "GloraConfig", {**SOME, "r": 4}),
    Case(
        "glora-vectors",
        "GloraConfig",
        {**SOME, "config_A_B": "vector", "config_C": "vector", "config_D_E": "vector"},
    ),
    Case("glora-none", "GloraConfig", {**SOME, "config_A_B": "constant", "config_C": "none"}),
    Case("osf", "OSFConfig", {**SOME, "effective_rank": 8}),
    Case("osf-pattern", "OSFConfig", {**SOME, "rank_pattern": {"q_proj": 3, "v_proj": 0.5}}),
    Case("peanut", "PeanutConfig", {**SOME, "r": 4}),
    Case("peanut-deep", "PeanutConfig", {**SOME, "r": 4, "depth": 2, "act_fn": "gelu"}),
    Case("psoft", "PsoftConfig", {**SOME, "r": 4}),
    Case(
        "psoft-lowrank",
        "PsoftConfig",
        {**SOME, "r": 4, "psoft_svd": "lowrank", "random_seed": 3, "ab_svd_init": "pissa_init"},
    ),
    Case("psoft-neumann", "PsoftConfig", {**SOME, "r": 4, "use_cayley_neumann": True}),
    Case("psoft-any", "PsoftConfig", {**SOME, "r": 4, "psoft_orth": False, "psoft_mag_a": False}),
    Case("waveft", "WaveFTConfig", {**SOME, "n_frequency": 30}),
    Case(
        "waveft-pattern",
        "WaveFTConfig",
        {**SOME, "n_frequency": 30, "wavelet_family": "db2", "n_frequency_pattern": {"q_proj": 20}},
    ),
    Case(
        "waveft-shares",
        "WaveFTConfig",
        {**SOME, "n_frequency": 30, "proportional_parameters": True},
    ),
    Case("waveft-conv1d", "WaveFTConfig", {**GPT2, "n_frequency": 30, "use_idwt": False}, "gpt2"),
]


@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning")
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.id)
def test_a_delegated_merge_computes_what_peft_computes(case: Case, tmp_path: Path) -> None:
    check(Case(case.id, case.config, case.fields, case.model, exact=False), tmp_path)
