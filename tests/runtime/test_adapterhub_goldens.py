"""Bottlenecks and their kin on live models, against what the library `adapters` 1.3 gave out.

`tools/make_adapter_goldens.py` made the files of tests/golden/adapters.
"""

from __future__ import annotations

import re
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from adapterhub import formats
from adapterhub.adapter import Adapter
from adapterhub.errors import AdapterHubError, BaseMismatch, NotSupported
from adapterhub.merging.work import Source
from adapterhub.runtime.attached import attach
from adapterhub.runtime.hooks import Hooks, hooked, install
from adapterhub.tensorfile import ArrayTensor

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
from safetensors.torch import load_file  # noqa: E402

GOLDEN = Path(__file__).resolve().parent.parent / "golden" / "adapters"
CASES = sorted(
    f"{case.parent.name}/{case.name}"
    for case in GOLDEN.glob("*/*")
    if case.is_dir() and case.name != "base"
)
CLASSES = {
    "bert_lm": "AutoModelForMaskedLM",
    "t5": "AutoModelForSeq2SeqLM",
    "qwen2_lm": "AutoModelForCausalLM",
}


def model_of(architecture: str, attention: str = "eager") -> Any:
    auto = getattr(transformers, CLASSES.get(architecture, "AutoModel"))
    path = GOLDEN / architecture / "base"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return auto.from_pretrained(path, attn_implementation=attention).eval()


def adapter_of(case: str) -> Adapter:
    reading = formats.read(GOLDEN / case)
    assert reading.adapter is not None, reading.problems
    return reading.adapter


def output_of(model: Any, architecture: str) -> Any:
    expected = load_file(GOLDEN / architecture / "expected.safetensors")
    inputs = {k.removeprefix("in."): v for k, v in expected.items() if k.startswith("in.")}
    with torch.no_grad():
        return model(**inputs)[0]


def expected_of(case: str) -> Any:
    architecture, name = case.split("/")
    return load_file(GOLDEN / architecture / "expected.safetensors")[f"out.{name}"]


def planned(model: Any, adapter: Adapter) -> Hooks:
    way = hooked(adapter.method)
    assert way is not None, adapter.method
    return way.plan(model, adapter, 1.0)


def distance(a: Any, b: Any) -> float:
    return float((a - b).abs().max())


@pytest.mark.parametrize("case", CASES)
def test_a_live_model_gives_what_the_library_gave(case: str) -> None:
    architecture = case.split("/")[0]
    model = model_of(architecture)
    before = output_of(model, architecture)
    assert distance(before, expected_of(f"{architecture}/base")) < 1e-5
    undo = install(model, planned(model, adapter_of(case)))
    found = output_of(model, architecture)
    undo()
    assert distance(found, expected_of(case)) < 1e-5
    assert torch.equal(output_of(model, architecture), before)


# --- beyond the goldens -----------------------------------------------------------------------


def with_tensors(adapter: Adapter, change: Any) -> Adapter:
    """Each tensor as `change(module, role, array)` has it; None leaves it out."""
    modules: dict[str, dict[str, Any]] = {}
    for module, role, tensor in adapter.tensors():
        value = change(module, role, tensor.read())
        if value is not None:
            modules.setdefault(module, {})[role] = ArrayTensor(value)
    return replace(adapter, modules=modules)


def attached(case: str, adapter: Adapter, attention: str = "eager") -> Any:
    architecture = case.split("/")[0]
    model = model_of(architecture, attention)
    undo = install(model, planned(model, adapter))
    found = output_of(model, architecture)
    undo()
    return found


@pytest.mark.parametrize("case", ["gpt2/prefix", "llama/prefix", "bert/prefix", "llama/mam"])
def test_prefixes_do_the_same_with_torchs_own_attention(case: str) -> None:
    assert distance(attached(case, adapter_of(case), "sdpa"), expected_of(case)) < 1e-5


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_a_prefix_is_the_same_with_a_cache_and_without_a_mask(attention: str) -> None:
    model, adapter = model_of("llama", attention), adapter_of("llama/prefix")
    undo = install(model, planned(model, adapter))
    ids = torch.tensor([[3, 7, 1, 9, 12]])
    with torch.no_grad():
        whole = model(input_ids=ids)[0]
        first = model(input_ids=ids[:, :3], use_cache=True)
        rest = model(input_ids=ids[:, 3:], past_key_values=first.past_key_values, use_cache=True)
        masked = model(input_ids=ids, attention_mask=torch.ones_like(ids))[0]
    undo()
    assert distance(whole, masked) < 1e-5
    assert distance(whole, torch.cat((first[0], rest[0]), dim=1)) < 1e-5


def test_an_adapter_of_the_base_class_goes_on_a_model_with_a_head() -> None:
    model = model_of("bert_lm")
    undo = install(model, planned(model, adapter_of("bert/houlsby")))
    changed = output_of(model, "bert_lm")
    undo()
    assert distance(changed, expected_of("bert_lm/base")) > 1e-2


def test_pruned_weights_are_zero() -> None:
    adapter, rng = adapter_of("bert/houlsby"), np.random.default_rng(7)
    masks: dict[tuple[str, str], Any] = {}

    def pruned(module: str, role: str, value: Any) -> Any:
        if value.ndim == 2:
            masks[module, role] = (rng.random(value.shape) < 0.5).astype(np.float32)
            return value * masks[module, role]
        return value

    zeroed = with_tensors(adapter, pruned)
    modules = {
        module: {**roles, **{f"{r}_mask": ArrayTensor(masks[module, r]) for r in roles if
                             (module, r) in masks}}
        for module, roles in adapter.modules.items()
    }  # fmt: skip
    sparse = replace(adapter, method="sparse_adapter", modules=modules)
    found = attached("bert/houlsby", sparse)
    assert torch.equal(found, attached("bert/houlsby", zeroed))
    assert distance(found, expected_of("bert/houlsby")) > 1e-2


def test_two_on_one_place_follow_each_other_and_leave_in_any_order() -> None:
    model = model_of("bert")
    alone = install(model, planned(model, adapter_of("bert/pfeiffer")))
    one = output_of(model, "bert")
    other = install(model, planned(model, adapter_of("bert/houlsby")))
    both = output_of(model, "bert")
    alone()
    assert distance(output_of(model, "bert"), expected_of("bert/houlsby")) < 1e-5
    other()
    assert distance(one, both) > 1e-2
    assert distance(both, expected_of("bert/houlsby")) > 1e-2


def test_one_that_replaces_the_models_norm_stands_alone() -> None:
    model = model_of("bert")
    undo = install(model, planned(model, adapter_of("bert/late")))
    with pytest.raises(NotSupported, match="original_ln_after: false stands alone"):
        install(model, planned(model, adapter_of("bert/houlsby")))
    assert distance(output_of(model, "bert"), expected_of("bert/late")) < 1e-5
    undo()


def test_an_unknown_architecture_is_refused_with_those_that_are_known() -> None:
    torch.manual_seed(0)
    config = transformers.OPTConfig(
        vocab_size=20, hidden_size=8, num_hidden_layers=1, num_attention_heads=2, ffn_dim=8,
        max_position_embeddings=16, word_embed_proj_dim=8,
    )  # fmt: skip
    with pytest.raises(NotSupported, match="no known place in the architecture 'opt'") as caught:
        planned(transformers.OPTModel(config), adapter_of("gpt2/houlsby"))
    assert "bert, distilbert, gpt2, llama, mistral, qwen2, qwen3, roberta, t5, vit" in str(
        caught.value
    )


def test_what_does_not_fit_is_listed() -> None:
    adapter, model = adapter_of("bert/houlsby"), model_of("bert")
    first = "encoder.layer.0.output"

    def lacks(module: str, role: str, value: Any) -> Any:
        return None if module == first else value

    def wide(module: str, role: str, value: Any) -> Any:
        return np.zeros((8, 5), np.float32) if role == "adapter_up.weight" else value

    with pytest.raises(BaseMismatch, match="1 findings") as caught:
        planned(model, with_tensors(adapter, lacks))
    assert caught.value.details == (f"{first}: the config asks for a bottleneck there",)
    with pytest.raises(BaseMismatch, match="findings") as caught:
        planned(model, with_tensors(adapter, wide))
    assert "up.weight is [8, 5], [8, 4] was expected" in caught.value.details[0]
    more = {**adapter.modules, "encoder.layer.7.output": adapter.modules[first]}
    with pytest.raises(BaseMismatch) as caught:
        planned(model, replace(adapter, modules=more))
    assert caught.value.details == ("encoder.layer.7.output: the model has no such layer",)
    odd = {**adapter.modules, "pooler": adapter.modules[first]}
    with pytest.raises(BaseMismatch) as caught:
        planned(model, replace(adapter, modules=odd))
    assert "this architecture has no place of that name" in caught.value.details[0]


def test_no_tensor_is_left_over() -> None:
    adapter, model = adapter_of("bert/houlsby"), model_of("bert")
    module, roles = next(iter(adapter.modules.items()))
    gate = ArrayTensor(np.ones((1, 8), np.float32))
    for role, said in (
        ("adapters:gate.weight", "there is a gate.weight, which the config does not ask for"),
        ("adapters:other", "other is none of a bottleneck's"),
    ):
        changed = replace(adapter, modules={**adapter.modules, module: {**roles, role: gate}})
        with pytest.raises(BaseMismatch) as caught:
            planned(model, changed)
        assert said in caught.value.details[0]


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"inv_adapter": "glow"}, "the invertible adapter 'glow' is not attached to a bert"),
        ({"non_linearity": "nosuch"}, "'nosuch' is not one of transformers"),
        ({"residual_before_ln": "after"}, "residual_before_ln is 'after'"),
        ({"scaling": "both"}, "scaling is 'both'"),
    ],
)
def test_fields_that_cannot_be_done_are_refused(fields: dict[str, Any], said: str) -> None:
    adapter = adapter_of("bert/houlsby")
    changed = replace(adapter, config={**adapter.config, **fields})
    with pytest.raises(AdapterHubError, match=re.escape(said)):
        planned(model_of("bert"), changed)


def test_heads_and_weights_are_refused() -> None:
    adapter, model = adapter_of("bert/houlsby"), model_of("bert")
    head = {**adapter.modules, "heads.1": {"replace:weight": ArrayTensor(np.ones((2, 8)))}}
    with pytest.raises(NotSupported, match="a head of AdapterHub's own classes"):
        planned(model, replace(adapter, modules=head))
    way = hooked("bottleneck")
    assert way is not None
    with pytest.raises(NotSupported, match=r"0\.5 was asked for, and only 1 is possible"):
        way.plan(model, adapter, 0.5)


def test_tensors_follow_the_models_dtype() -> None:
    model, adapter = model_of("llama").to(torch.bfloat16), adapter_of("llama/houlsby")
    before = output_of(model, "llama")
    undo = install(model, planned(model, adapter))
    found = output_of(model, "llama")
    undo()
    assert found.dtype == torch.bfloat16
    assert distance(found.float(), expected_of("llama/houlsby")) < 0.2
    assert torch.equal(output_of(model, "llama"), before)


def test_attach_and_switch_by_the_librarys_own_verbs() -> None:
    model = model_of("bert")
    before = output_of(model, "bert")
    sources = {
        name: Source(name, adapter_of(f"bert/{name}"), 1.0)
        for name in ("houlsby", "prefix", "unipelt")
    }
    with attach(model, [sources["houlsby"]]) as attached_now:
        assert distance(output_of(model, "bert"), expected_of("bert/houlsby")) < 1e-5
        attached_now.switch(sources["unipelt"])
        assert distance(output_of(model, "bert"), expected_of("bert/unipelt")) < 1e-5
        attached_now.switch(sources["prefix"])
        assert distance(output_of(model, "bert"), expected_of("bert/prefix")) < 1e-5
        assert attached_now.memory > 0
    assert torch.equal(output_of(model, "bert"), before)
