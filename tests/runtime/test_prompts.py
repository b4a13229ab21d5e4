"""Prompts of PEFT and T5X on live models, against PEFT's own wrapper; and that nothing is left."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from adapterhub import formats
from adapterhub.adapter import Adapter
from adapterhub.errors import BaseMismatch, NotSupported
from adapterhub.runtime.hooks import Hooks, hooked, install
from adapterhub.tensorfile import ArrayTensor

torch = pytest.importorskip("torch")
peft = pytest.importorskip("peft")
transformers = pytest.importorskip("transformers")

SMALL = {"vocab_size": 24, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
BERT = {**SMALL, "intermediate_size": 20, "max_position_embeddings": 24}
LLAMA = {**BERT, "num_key_value_heads": 1}
T5 = {
    "vocab_size": 24,
    "d_model": 16,
    "d_kv": 8,
    "d_ff": 20,
    "num_layers": 2,
    "num_heads": 2,
    "decoder_start_token_id": 0,
}
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "CAUSAL_LM": ("LlamaForCausalLM", LLAMA),
    "SEQ_CLS": ("BertForSequenceClassification", BERT),
    "SEQ_2_SEQ_LM": ("T5ForConditionalGeneration", T5),
}
CASES = [
    ("PromptTuningConfig", "CAUSAL_LM", {}),
    ("PromptTuningConfig", "SEQ_CLS", {}),
    ("PromptTuningConfig", "SEQ_2_SEQ_LM", {}),
    ("PromptEncoderConfig", "CAUSAL_LM", {"encoder_hidden_size": 8}),
    ("PromptEncoderConfig", "SEQ_CLS", {"encoder_hidden_size": 8}),
    ("PrefixTuningConfig", "CAUSAL_LM", {}),
    ("PrefixTuningConfig", "CAUSAL_LM", {"prefix_projection": True, "encoder_hidden_size": 8}),
    ("MultitaskPromptTuningConfig", "CAUSAL_LM", {"num_tasks": 2, "num_ranks": 2}),
]


def model_of(task: str) -> Any:
    torch.manual_seed(3)
    name, fields = MODELS[task]
    kind = getattr(transformers, name)
    return kind(kind.config_class(**fields)).eval()


def inputs_of(task: str, method: str = "") -> dict[str, Any]:
    found = {
        "input_ids": torch.tensor([[3, 7, 1, 9, 12], [4, 4, 8, 2, 2]]),
        "attention_mask": torch.tensor([[1] * 5, [1] * 3 + [0] * 2]),
    }
    if task == "SEQ_2_SEQ_LM":
        found["decoder_input_ids"] = torch.tensor([[0, 5, 6], [0, 2, 9]])
    if method.startswith("Multitask"):
        found["task_ids"] = torch.tensor([0, 1])
    return found


def output_of(model: Any, inputs: dict[str, Any]) -> Any:
    with torch.no_grad():
        return model(**inputs).logits


def saved(method: str, task: str, fields: dict[str, Any], place: Path) -> tuple[Adapter, Any]:
    """An adapter of random values, and what PEFT's own loading of it gives out."""
    config = getattr(peft, method)(task_type=task, num_virtual_tokens=3, **fields)
    wrapper = peft.get_peft_model(model_of(task), config)
    torch.manual_seed(4)
    with torch.no_grad():
        for parameter in wrapper.parameters():
            if parameter.requires_grad:
                parameter.copy_(torch.randn_like(parameter) * 0.5)
    wrapper.save_pretrained(place)
    loaded = peft.PeftModel.from_pretrained(model_of(task), place).eval()
    reading = formats.read(place)
    assert reading.adapter is not None, reading.problems
    return reading.adapter, output_of(loaded, inputs_of(task, method))


def planned(model: Any, adapter: Adapter, weight: float = 1.0) -> Hooks:
    way = hooked(adapter.method)
    assert way is not None
    return way.plan(model, adapter, weight)


def structure(model: Any) -> dict[str, Any]:
    """All that may not change: objects by identity, flags, attributes of every module."""
    found: dict[str, Any] = {}
    for path, module in model.named_modules(remove_duplicate=False):
        found[path] = (id(module), sorted(module.__dict__), list(module._modules))
    for name, parameter in model.named_parameters(remove_duplicate=False):
        found[f"{name}="] = (id(parameter), parameter.requires_grad)
    found["config"] = model.config.to_dict()
    return found


@pytest.mark.parametrize(("method", "task", "fields"), CASES)
def test_attached_is_what_peft_gives(
    method: str, task: str, fields: dict[str, Any], tmp_path: Path
) -> None:
    adapter, expected = saved(method, task, fields, tmp_path)
    model, inputs = model_of(task), inputs_of(task, method)
    plain, before = output_of(model, inputs_of(task)), structure(model)
    hooks = planned(model, adapter)
    assert structure(model) == before
    undo = install(model, hooks)
    found = output_of(model, inputs)
    undo()
    assert (found[:, -3:] - expected[:, -3:]).abs().max() < 1e-5
    assert found.shape == expected.shape
    changed = found.shape != plain.shape or float((found - plain).abs().max()) > 1e-3
    assert changed
    assert structure(model) == before
    assert torch.equal(output_of(model, inputs_of(task)), plain)


@pytest.mark.filterwarnings("ignore:Position ids are not supported")
def test_generation_goes_through_the_prompt(tmp_path: Path) -> None:
    adapter, _ = saved("PromptTuningConfig", "CAUSAL_LM", {}, tmp_path)
    loaded = peft.PeftModel.from_pretrained(model_of("CAUSAL_LM"), tmp_path).eval()
    ask = {**inputs_of("CAUSAL_LM"), "max_new_tokens": 6, "do_sample": False, "pad_token_id": 0}
    ask |= {"output_scores": True, "return_dict_in_generate": True}
    model = model_of("CAUSAL_LM")
    before = structure(model)
    undo = install(model, planned(model, adapter))
    found = torch.stack(model.generate(**ask).scores)
    undo()
    assert structure(model) == before
    assert (found - torch.stack(loaded.generate(**ask).scores)).abs().max() < 1e-5
    assert (found - torch.stack(model.generate(**ask).scores)).abs().max() > 1e-4


def test_a_prompt_of_t5x_stands_before_the_encoders_input() -> None:
    prompt = np.random.default_rng(5).normal(size=(4, 16)).astype(np.float32)
    modules = {"": {"prompt_embeddings": ArrayTensor(prompt)}}
    adapter = Adapter("prompt_tuning", "t5x_prompt", {"num_virtual_tokens": 4}, modules)
    model, inputs = model_of("SEQ_2_SEQ_LM"), inputs_of("SEQ_2_SEQ_LM")
    own = model.get_input_embeddings()(inputs["input_ids"])
    ahead = torch.from_numpy(prompt).expand(2, 4, 16)
    by_hand = {
        "inputs_embeds": torch.cat((ahead, own), dim=1),
        "attention_mask": torch.cat((torch.ones(2, 4).long(), inputs["attention_mask"]), dim=1),
        "decoder_input_ids": inputs["decoder_input_ids"],
    }
    expected = output_of(model, by_hand)
    undo = install(model, planned(model, adapter))
    assert (output_of(model, inputs) - expected).abs().max() < 1e-5
    undo()


def test_a_second_prompt_a_weight_and_a_wrong_width_are_refused(tmp_path: Path) -> None:
    adapter, _ = saved("PromptTuningConfig", "CAUSAL_LM", {}, tmp_path)
    model = model_of("CAUSAL_LM")
    with pytest.raises(NotSupported, match=r"0\.5 was asked for, and only 1 is possible"):
        planned(model, adapter, 0.5)
    undo = install(model, planned(model, adapter))
    with pytest.raises(NotSupported, match="a prompt is attached already"):
        install(model, planned(model, adapter))
    undo()
    torch.manual_seed(0)
    wide = transformers.LlamaForCausalLM(transformers.LlamaConfig(**{**LLAMA, "hidden_size": 32}))
    with pytest.raises(BaseMismatch, match="1 findings") as caught:
        planned(wide, adapter)
    assert "the model's embeddings have 32" in caught.value.details[0]
