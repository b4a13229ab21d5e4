"""Every method that attaches and that PEFT knows, against PEFT's own forward pass.

The cases are those of the merges, so that an attached model is compared with the merge, too.
"""

from __future__ import annotations

import copy
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch")
pytest.importorskip("peft")
sys.path.append(str(Path(__file__).parents[1] / "merging"))

import peft
import test_prompts as prompts
import torch
import transformers
from every_method import AROUND, CASES, QUICK, SLOW, Case, method_of_config
from living import bits
from test_methods_against_peft import MODELS

from adapterhub import api
from adapterhub.base import open_base
from adapterhub.methods import TABLE
from adapterhub.methods.lora_config import VARIANTS
from adapterhub.registry import Registry

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning")
ALL = [*QUICK, *(pytest.param(case, id=case.id, marks=pytest.mark.slow) for case in SLOW)]
TOKENS = torch.arange(20).reshape(2, 10)
SIZE = 0.1


class Stage:
    """A model of each kind, whose weights stay; saved beside."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._models: dict[str, Any] = {}

    def model(self, kind: str) -> Any:
        if kind not in self._models:
            torch.manual_seed(0)
            config, fields, name = MODELS[kind]
            made = getattr(transformers, name)(getattr(transformers, config)(**fields)).eval()
            shake(made, every=True)
            made.save_pretrained(self.path / kind)
            self._models[kind] = made, bits(made), answer(made)
        return self._models[kind]


@pytest.fixture(scope="module")
def stage(tmp_path_factory: pytest.TempPathFactory) -> Stage:
    return Stage(tmp_path_factory.mktemp("stage"))


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Registry]:
    with api.open(tmp_path_factory.mktemp("home")) as opened:
        yield opened


def shake(model: Any, *, every: bool = False) -> None:
    with torch.no_grad():
        for parameter in model.parameters():
            if every or parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter) * SIZE)


def answer(model: Any) -> Any:
    with torch.no_grad():
        return model(TOKENS).logits


def adapted(case: Case, model: Any, path: Path) -> Any:
    """Saves an adapter of random values; what PEFT's forward pass answers with it."""
    torch.manual_seed(len(case.id))
    live = peft.get_peft_model(copy.deepcopy(model), getattr(peft, case.config)(**case.fields))
    shake(live.eval())
    live.save_pretrained(path)
    return answer(live)


@pytest.mark.parametrize("case", ALL, ids=lambda case: case.id)
def test_attached_it_computes_what_peft_computes_and_has_the_bits_of_the_merge(
    case: Case, stage: Stage, shared: Registry, tmp_path: Path
) -> None:
    if case.config == "AdamssConfig":
        pytest.importorskip("sklearn")  # which PEFT clusters with
    model, before, plain = stage.model(case.model)
    expected = adapted(case, model, tmp_path / "a")
    assert float((expected - plain).abs().max()) > 1e-3  # the adapter does something
    with api.attach(model, tmp_path / "a", registry=shared) as attached:
        np.testing.assert_allclose(answer(model).numpy(), expected.numpy(), atol=1e-5, rtol=1e-5)
        assert attached.memory > 0
        assert attached.fates
        api.merge(
            stage.path / case.model, [tmp_path / "a"], out=tmp_path / "merged", registry=shared
        )
        live = model.state_dict()
        for name, tensor in open_base(tmp_path / "merged").tensors.items():
            assert tensor.read().tobytes() == live[name].numpy().tobytes(), name
    assert bits(model) == before
    assert torch.equal(answer(model), plain)


LOADED = [
    case for case in CASES if case in AROUND or case.id in ("glora", "lora-dora", "hira-tied")
]


@pytest.mark.slow
@pytest.mark.parametrize("case", LOADED, ids=lambda case: case.id)
def test_a_model_loaded_with_it_computes_the_same(
    case: Case, stage: Stage, shared: Registry, tmp_path: Path
) -> None:
    if case.config == "AdamssConfig":
        pytest.importorskip("sklearn")
    model, _, plain = stage.model(case.model)
    expected = adapted(case, model, tmp_path / "a")
    loaded = api.load_model(tmp_path / "a", base=stage.path / case.model, registry=shared)
    assert float((expected - plain).abs().max()) > 1e-3
    np.testing.assert_allclose(answer(loaded).numpy(), expected.numpy(), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(("config", "task", "fields"), prompts.CASES)
def test_prompts_stand_before_the_input_as_pefts_do(
    config: str, task: str, fields: dict[str, Any], shared: Registry, tmp_path: Path
) -> None:
    _, expected = prompts.saved(config, task, fields, tmp_path / "a")
    model, inputs = prompts.model_of(task), prompts.inputs_of(task, config)
    before, structure = bits(model), prompts.structure(model)
    plain = prompts.output_of(model, prompts.inputs_of(task))
    with api.attach(model, tmp_path / "a", registry=shared):
        found = prompts.output_of(model, inputs)
        assert found.shape == expected.shape
        np.testing.assert_allclose(found.numpy(), expected.numpy(), atol=1e-5, rtol=1e-5)
    assert bits(model) == before
    assert prompts.structure(model) == structure
    assert torch.equal(prompts.output_of(model, prompts.inputs_of(task)), plain)


def test_no_method_is_missing() -> None:
    """Whatever attaches and peft has needs a case here."""
    wanted = {row.name for row in TABLE.values() if "attach" in row.does and row.peft_type}
    wanted -= {"bone"}  # which peft has renamed: see test_rotations_against_peft
    configs = {case.config for case in CASES} | {config for config, *_ in prompts.CASES}
    assert {method_of_config(config) for config in configs} == wanted


def test_no_variant_of_lora_that_merges_is_missing() -> None:
    merged = {field for field, (_, refused) in VARIANTS.items() if refused is None}
    seen = {field for case in CASES if case.config == "LoraConfig" for field in case.fields}
    # target_parameters are those of experts: see test_attach
    assert merged - seen == {"target_parameters"}
    assert "mica" in {case.fields.get("init_lora_weights") for case in CASES}
