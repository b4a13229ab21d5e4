"""What `attach` refuses, what a model may do meanwhile, and heads with other labels."""

from __future__ import annotations

import copy
import warnings
from pathlib import Path

import pytest

pytest.importorskip("torch")
pytest.importorskip("peft")

import peft
import torch
import transformers
from living import LORA, MODELS, Bench, adapter_of, bits, model_of, output

from adapterhub import api
from adapterhub.errors import BaseMismatch, NotMergeable, NotSupported
from adapterhub.registry import Registry

# --- the model meanwhile ----------------------------------------------------------------------


def test_saving_is_refused_while_attached(bench: Bench, tmp_path: Path) -> None:
    with bench.attach("a") as attached:
        with pytest.raises(NotSupported, match="a attached to this model") as caught:
            bench.model.save_pretrained(tmp_path / "out")
        assert "detach first" in caught.value.remedy
        attached.switch(bench.root / "b")
        with pytest.raises(NotSupported, match="b attached to this model"):
            bench.model.save_pretrained(tmp_path / "out")
    assert not (tmp_path / "out").exists()
    bench.model.save_pretrained(tmp_path / "out")


def test_training_mode_gradients_and_dtype_are_left_alone(bench: Bench) -> None:
    weight = bench.model.get_parameter("model.layers.0.self_attn.q_proj.weight")
    with bench.attach("a"):
        bench.model.train()
        assert weight.requires_grad
        assert bench.model.get_parameter("model.layers.0.self_attn.q_proj.weight") is weight
    assert bench.model.training
    bench.model.eval()


def test_a_backward_pass_across_an_attach_is_caught(bench: Bench) -> None:
    """Autograd would otherwise take the new weights for those of the forward pass."""
    loss = bench.model(torch.tensor([[1, 2, 3]])).logits.sum()
    with bench.attach("a"), pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()
    bench.model.zero_grad()


def test_changes_by_others_are_not_overwritten_unasked(bench: Bench) -> None:
    name = "model.layers.0.self_attn.q_proj.weight"
    attached = bench.attach("a")
    with torch.no_grad():
        bench.model.get_parameter(name).add_(1)
    with pytest.raises(NotSupported, match="1 tensors were changed by others") as caught:
        attached.detach()
    assert caught.value.details == (name,)
    attached.detach(discard=True)
    assert bits(bench.model) == bench.bare
    with pytest.raises(NotSupported, match="that is lost"), bench.attach("a"), torch.no_grad():
        bench.model.get_parameter(name).add_(1)


def test_weights_in_another_memory_layout(bench: Bench) -> None:
    weight = bench.model.get_parameter("model.layers.0.self_attn.q_proj.weight")
    strides = weight.stride()
    weight.data = weight.data.t().contiguous().t()
    assert not weight.is_contiguous()
    with bench.attach("a"):
        assert bits(bench.model) == bench.merged(("a", 1.0))
    assert bits(bench.model) == bench.bare
    weight.data = weight.data.contiguous()
    assert weight.stride() == strides


def test_inference_mode_inside_and_around(bench: Bench) -> None:
    with torch.inference_mode(), bench.attach("a"):
        assert bits(bench.model) == bench.merged(("a", 1.0))
    with torch.inference_mode():
        model = type(bench.model).from_pretrained(bench.root / "base", dtype="bfloat16")
    with api.attach(model, bench.root / "a", registry=bench.registry):
        assert bits(model) == bench.merged(("a", 1.0))
    assert bits(model) == bench.bare


def test_weights_in_fp64_are_refused(bench: Bench) -> None:
    model = copy.deepcopy(bench.model).double()
    with pytest.raises(NotMergeable, match="stored as F64"):
        api.attach(model, bench.root / "a", registry=bench.registry)


def test_a_copy_made_while_attached_cannot_be_saved(bench: Bench, tmp_path: Path) -> None:
    with bench.attach("a"):
        twin = copy.deepcopy(bench.model)
    assert bits(twin) == bench.merged(("a", 1.0))
    with pytest.raises(NotSupported, match="a attached to this model"):
        twin.save_pretrained(tmp_path / "out")


# --- what does not fit ------------------------------------------------------------------------


def test_another_model_is_refused_with_the_whole_list(bench: Bench) -> None:
    other = model_of("gpt2")
    before = bits(other)
    with pytest.raises(
        BaseMismatch, match=r"does not fit this GPT2LMHeadModel: 4 mismatches"
    ) as caught:
        api.attach(other, bench.root / "a", registry=bench.registry)
    assert len(caught.value.details) == 4
    assert "layers.1.self_attn.v_proj" in " ".join(caught.value.details)
    assert bits(other) == before


def test_tied_weights_under_both_names(registry: Registry, tmp_path: Path) -> None:
    model = model_of("gpt2")
    fields = {"target_modules": ["c_attn"], "fan_in_fan_out": True, "trainable_token_indices": [2]}
    expected = adapter_of(model, "LoraConfig", tmp_path / "a", **LORA, **fields)
    before = bits(model)
    with api.attach(model, tmp_path / "a", registry=registry):
        assert torch.allclose(output(model), expected, atol=1e-5)
        assert model.lm_head.weight is model.transformer.wte.weight
    assert bits(model) == before


def test_a_model_on_the_meta_device_is_refused(bench: Bench) -> None:
    config, fields, name = MODELS["llama"]
    with torch.device("meta"):
        model = getattr(transformers, name)(getattr(transformers, config)(**fields))
    with pytest.raises(NotSupported, match="on the meta device"):
        api.attach(model, bench.root / "a", registry=bench.registry)


def test_a_model_wrapped_by_peft_is_refused(bench: Bench) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        wrapped = peft.get_peft_model(
            copy.deepcopy(bench.model), peft.LoraConfig(target_modules=["q_proj"])
        )
    with pytest.raises(NotSupported, match="is peft's wrapper of a model"):
        api.attach(wrapped, bench.root / "a", registry=bench.registry)


def test_multiplying_methods_stand_alone(bench: Bench, tmp_path: Path) -> None:
    fields = {"target_modules": ["q_proj"], "feedforward_modules": []}
    adapter_of(bench.model, "IA3Config", tmp_path / "i", **fields)
    with bench.attach("a"), pytest.raises(NotMergeable, match="the order would matter"):
        api.attach(bench.model, tmp_path / "i", registry=bench.registry)
    with pytest.raises(NotMergeable, match=r"cannot be taken with weight 0\.5"):
        api.attach(bench.model, tmp_path / "i", weight=0.5, registry=bench.registry)


# --- heads ------------------------------------------------------------------------------------


def test_a_head_with_other_labels_and_back(registry: Registry, tmp_path: Path) -> None:
    """Two tasks on one model: three labels, two labels, and the model's own."""
    model = model_of("tokens", num_labels=2)
    model.save_pretrained(tmp_path / "base")
    before, labels = bits(model), dict(model.config.id2label)
    expected = {}
    for name, count in (("ner", 3), ("pos", 5)):
        trained = (
            type(model)
            .from_pretrained(tmp_path / "base", num_labels=count, ignore_mismatched_sizes=True)
            .eval()
        )
        expected[name] = adapter_of(
            trained,
            "LoraConfig",
            tmp_path / name,
            count,
            task_type="TOKEN_CLS",
            target_modules=["query"],
            **LORA,
        )
        registry.add(tmp_path / name, name=name, labels=[f"{name}{i}" for i in range(count)])
    with api.attach(model, "ner", registry=registry) as attached:
        assert torch.allclose(output(model), expected["ner"], atol=1e-5)
        assert model.config.id2label == {0: "ner0", 1: "ner1", 2: "ner2"}
        attached.switch("pos")
        assert torch.allclose(output(model), expected["pos"], atol=1e-5)
        assert model.config.num_labels == model.num_labels == model.classifier.out_features == 5
    assert bits(model) == before
    assert model.config.id2label == labels
    assert model.num_labels == model.classifier.out_features == 2
