"""Rank, alpha and scaling, against what PEFT itself takes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import peft
import pytest
import torch

from adapterhub import formats
from adapterhub.adapter import Outline
from adapterhub.registry import figures, inspection


def model() -> torch.nn.Module:
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Linear(32, 32), torch.nn.Linear(32, 32))


def config_of(kind: str, **fields: Any) -> peft.PeftConfig:
    return getattr(peft, kind)(target_modules=["0", "1"], **fields)


@pytest.mark.parametrize(
    ("config", "alpha"),
    [
        (config_of("LoraConfig", r=4, lora_alpha=6), 6),
        (config_of("LoraConfig", r=4), 8),
        (config_of("LoraConfig", r=4, lora_alpha=6, use_rslora=True), 6),
        (config_of("LoraConfig", r=4, rank_pattern={"1": 2}, alpha_pattern={"0": 5}), 8),
        (config_of("LoHaConfig", r=4, alpha=6, rank_pattern={"1": 2}), 6),
        (config_of("LoKrConfig", r=4, alpha=6, alpha_pattern={"0": 5}), 6),  # the factors are whole
        (config_of("LoKrConfig", r=1, alpha=6, decompose_both=True), 6),
        (config_of("GraloraConfig", r=4, alpha=6, gralora_k=2, hybrid_r=2), 6),
        (config_of("PsoftConfig", r=4, psoft_alpha=6), 6),
        (config_of("RandLoraConfig", r=4, randlora_alpha=6), 6),
        (config_of("DeftConfig", r=4, alpha=6), 6),
    ],
    ids=lambda value: type(value).__name__,
)
def test_scaling_is_pefts(config: peft.PeftConfig, alpha: float, tmp_path: Path) -> None:
    live = peft.get_peft_model(model(), config)
    live.save_pretrained(tmp_path / "a")
    field = "deft_scaling" if isinstance(config, peft.DeftConfig) else "scaling"
    layers = [dict(live.named_modules())[f"base_model.model.{name}"] for name in "01"]
    theirs = [getattr(layer, field)["default"] for layer in layers]
    seen = inspection.inspect(formats.read(tmp_path / "a"), source="x")
    assert seen.alpha == alpha
    assert seen.scaling is not None
    assert (seen.scaling["min"], seen.scaling["max"]) == (min(theirs), max(theirs))


def test_adalora_scales_by_the_rank_that_is_left() -> None:
    config = {"peft_type": "ADALORA", "init_r": 12, "r": 8, "target_r": 4, "lora_alpha": 16}
    seen = figures.scaling("adalora", None, Outline(ranks={"q": 8, "v": 4}), config)
    assert seen is not None
    assert (seen["min"], seen["max"]) == (2, 4)
    assert figures.declared_rank("adalora", config) == 12


@pytest.mark.parametrize(
    ("method", "config", "expected"),
    [
        ("fourierft", {"scaling": 150.0}, 150.0),
        ("fourierft", {"peft_type": "FOURIERFT"}, 150.0),
        ("lily", {"scaling": 8.0, "r": 4, "lora_alpha": 1}, 8.0),
        ("bottleneck", {"scaling": "learned"}, None),
        ("lora", {"r": 0, "lora_alpha": 1}, None),
        ("lora", {"r": True, "lora_alpha": 1}, None),
        ("lora", {"lora_alpha": 1}, None),
        ("lora", {"r": 10**400, "lora_alpha": 1.5}, None),
        ("lora", {"r": 4, "lora_alpha": float("inf")}, None),
        ("lora", {"r": 4, "lora_alpha": 2, "alpha_pattern": [1]}, 0.5),
        ("lora", {"r": 4, "lora_alpha": 2, "alpha_pattern": {"q": 1}}, None),
        ("lora", {"r": 4, "lora_alpha": 2, "rank_pattern": {"q": 1}}, None),
        ("shadow", {"shadow_alpha": 0.1, "r": 8}, None),
        ("finegates", {"r": 4, "lora_alpha": 1}, None),
        (None, {"r": 4, "lora_alpha": 1}, None),
    ],
)
def test_scaling_of_a_config_alone(
    method: str | None, config: dict[str, Any], expected: float | None
) -> None:
    seen = figures.scaling(method, None, Outline(), config)
    assert (seen and seen["min"]) == expected


def test_patterns_that_cannot_be_used_give_no_scaling() -> None:
    config = {"r": 4, "lora_alpha": 1, "rank_pattern": {"(a+)+$": 2}}
    assert figures.scaling("lora", None, Outline(ranks={"a" * 40 + "b": 4}), config) is not None
    bomb = {"r": 4, "lora_alpha": 1, "alpha_pattern": {"(a+)+$": 2}}
    assert figures.scaling("lora", None, Outline(ranks={"a" * 40 + "b": 4}), bomb) is None


@pytest.mark.parametrize(
    ("method", "config", "expected"),
    [
        ("lora", {"lora_alpha": 3, "alpha": 4}, 3),
        ("loha", {"alpha": 4}, 4),
        ("psoft", {"psoft_alpha": 5, "lora_alpha": 1}, 5),
        ("randlora", {"randlora_alpha": 640}, 640),
        ("shadow", {"shadow_alpha": 0.1}, 0.1),
        ("lora", {"peft_type": "LORA"}, 8),
        ("ia3", {"peft_type": "IA3"}, None),
        ("lora", {"peft_type": "LORA", "lora_alpha": None}, None),
        ("finegates", {"peft_type": "FINEGATES", "lora_alpha": 2}, 2),
        (None, {"lora_alpha": float("nan")}, None),
    ],
)
def test_alpha_by_its_name(
    method: str | None, config: dict[str, Any], expected: float | None
) -> None:
    assert figures.effective_alpha(method, config) == expected


@pytest.mark.parametrize(
    ("method", "config", "expected"),
    [
        ("lora", {"r": 8}, 8),
        ("lora", {"r": "8"}, None),
        ("oft", {"r": 8}, None),  # a number of blocks
        ("deft", {"r": 8}, 8),
        ("finegates", {"r": 8}, 8),
    ],
)
def test_the_declared_rank(method: str, config: dict[str, Any], expected: int | None) -> None:
    assert figures.declared_rank(method, config) == expected


def test_names_of_a_field() -> None:
    assert figures.names(["v", "q", "q", 7, ""]) == ("q", "v")
    assert figures.names(r".*\.(q|v)") == (r".*\.(q|v)",)
    assert figures.names(None) == figures.names("") == figures.names({"q": 1}) == ()
