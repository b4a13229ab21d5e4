"""Hooks: all of an adapter's or none, undone wholly, in the order in which they were attached."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("torch")
pytest.importorskip("peft")

import torch
from living import adapter_of, bits, model_of, output

from adapterhub import api
from adapterhub.errors import BaseMismatch, NotSupported
from adapterhub.registry import Registry
from adapterhub.runtime import changing, hooks, planning
from adapterhub.runtime.hooks import Hooks, install

LAYER = "model.layers.1.mlp"


def adding(value: float) -> Any:
    return lambda module, args, kwargs, out: out + value


def test_it_undoes_everything() -> None:
    model, log = model_of("llama"), []
    before = output(model)

    def other() -> Any:
        log.append("done")
        return lambda: log.append("undone")

    def doubling(module: Any, args: Any, kwargs: Any) -> Any:
        return (args[0] * 2, *args[1:]), kwargs

    undo = install(model, Hooks(((LAYER, doubling),), ((LAYER, adding(1)),), (other,)))
    assert not torch.equal(output(model), before)
    undo()
    assert torch.equal(output(model), before)
    assert log == ["done", "undone"]


def test_a_failure_leaves_nothing() -> None:
    model = model_of("llama")
    before = output(model)
    with pytest.raises(BaseMismatch, match="has no module model"):
        install(model, Hooks(after=((LAYER, adding(1)), ("model.nowhere", adding(1)))))
    assert torch.equal(output(model), before)


@pytest.fixture
def by_hook(monkeypatch: pytest.MonkeyPatch) -> None:
    """LoHa attaches by a hook that adds the weight, for once."""

    def plan(model: Any, adapter: Any, weight: float) -> Hooks:
        return Hooks(after=((LAYER, adding(weight)),), nbytes=8)

    known = planning.hooked

    def hooked(method: str) -> Any:
        return SimpleNamespace(plan=plan) if method == "loha" else known(method)

    monkeypatch.setattr(planning, "hooked", hooked)


@pytest.mark.usefixtures("by_hook")
def test_beside_merged_adapters(
    registry: Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = model_of("llama")
    adapter_of(model, "LoHaConfig", tmp_path / "h", r=2, target_modules=["q_proj"])
    adapter_of(model, "LoraConfig", tmp_path / "l", r=2, target_modules=["q_proj"])
    before, weights = output(model), bits(model)
    merged = api.attach(model, tmp_path / "l", registry=registry)
    with_lora = output(model)
    hook = api.attach(model, tmp_path / "h", weight=0.5, registry=registry)
    both = output(model)
    assert not torch.equal(both, with_lora)
    assert hook.memory == merged.memory == 8 + 2 * 16 * 16 * 4
    with pytest.raises(NotSupported, match=r"l and .*h attached"):
        model.save_pretrained(tmp_path / "out")

    def failing(*_: Any) -> None:
        raise OSError("gone")

    real = changing._change
    monkeypatch.setattr(changing, "_change", failing)
    with pytest.raises(OSError, match="gone"):
        hook.switch(_another(model, tmp_path))
    monkeypatch.setattr(changing, "_change", real)
    assert torch.equal(output(model), both)
    merged.detach()
    assert not torch.equal(output(model), before)
    assert bits(model) == weights
    hook.detach()
    assert torch.equal(output(model), before)


def _another(model: Any, place: Path) -> Path:
    adapter_of(model, "LoraConfig", place / "m", r=2, target_modules=["v_proj"])
    return place / "m"


@pytest.mark.usefixtures("by_hook")
def test_hooks_that_cannot_be_installed_leave_the_weights(
    registry: Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = model_of("llama")
    adapter_of(model, "LoHaConfig", tmp_path / "h", r=2, target_modules=["q_proj"])
    adapter_of(model, "LoraConfig", tmp_path / "l", r=2, target_modules=["q_proj"])
    weights = bits(model)
    monkeypatch.setattr("test_hooks.LAYER", "model.nowhere")
    with pytest.raises(BaseMismatch, match="no module"):
        api.attach(model, [tmp_path / "l", tmp_path / "h"], registry=registry)
    assert bits(model) == weights
    model.save_pretrained(tmp_path / "saved")


def test_every_hooked_method_names_a_module_with_a_plan() -> None:
    for method in hooks.HOOKED:
        found = hooks.hooked(method)
        assert found is not None
        assert callable(found.plan)
