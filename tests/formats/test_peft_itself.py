"""Adapters made by peft itself: read, compared with its layers, written, and loaded by it again."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model, get_peft_model_state_dict
from peft.tuners.lora import LoraLayer
from peft.tuners.lora.config import KasaConfig, MontecloraConfig, VeloraConfig
from torch import nn
from transformers import (
    BertConfig,
    BertForTokenClassification,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
)

from adapterhub import formats
from adapterhub.adapter import Adapter
from adapterhub.errors import InvalidAdapter, NotMergeable
from adapterhub.methods import LowRank, lora
from adapterhub.registry import inspection
from adapterhub.tensorfile import DTYPES

TOKENS = torch.arange(12).reshape(2, 6) % 30


def bert() -> nn.Module:
    return BertForTokenClassification(
        BertConfig(
            vocab_size=32,
            hidden_size=16,
            num_hidden_layers=2,
            num_attention_heads=2,
            intermediate_size=24,
            num_labels=4,
        )
    )


def llama() -> nn.Module:
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=32,
            hidden_size=16,
            num_hidden_layers=2,
            num_attention_heads=2,
            num_key_value_heads=1,
            intermediate_size=24,
            tie_word_embeddings=False,
        )
    )


def gpt2() -> nn.Module:
    return GPT2LMHeadModel(GPT2Config(vocab_size=32, n_embd=16, n_layer=2, n_head=2, n_positions=8))


class Plain(nn.Module):
    """An embedding, a convolution and a linear layer, with no config of transformers'."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(32, 6)
        self.conv = nn.Conv2d(1, 3, 3)
        self.out = nn.Linear(3 * 4 * 4, 5)

    def forward(self, input_ids: torch.Tensor) -> torch.Tensor:
        return self.out(self.conv(self.table(input_ids)[:, None]).flatten(1))


class Attention(nn.Module):
    """One adapter for query, key and value together, one for the output."""

    def __init__(self) -> None:
        super().__init__()
        self.attn = nn.MultiheadAttention(8, 2)
        self.out = nn.Linear(8, 3)

    def forward(self, input_ids: torch.Tensor) -> torch.Tensor:
        x = input_ids[..., None].float() / torch.arange(1, 9)
        return self.out(self.attn(x, x, x)[0])


@dataclass(frozen=True)
class Case:
    model: Callable[[], nn.Module]
    options: dict[str, Any] = field(default_factory=dict)
    mergeable: bool = True
    save: dict[str, Any] = field(default_factory=dict)


QV = {"target_modules": ["query", "value"]}
CASES = {
    "plain": Case(bert, QV),
    "head": Case(bert, {"task_type": "TOKEN_CLS", **QV}),
    "rslora": Case(bert, {"use_rslora": True, **QV}),
    "patterns": Case(
        bert,
        {
            "target_modules": "all-linear",
            "rank_pattern": {r".*\.query": 6, "dense": 5, "layer.1.attention.*": 3},
            "alpha_pattern": {r"output\.dense": 3, "value": 0.5},
            "use_rslora": True,
        },
    ),
    "bias-all": Case(bert, {"bias": "all", **QV}),
    "bias-lora-only": Case(bert, {"bias": "lora_only", **QV}),
    "lora-bias": Case(bert, {"lora_bias": True, **QV}),
    "bert-embeddings": Case(bert, {"target_modules": ["word_embeddings", "query"]}),
    "llama": Case(llama, {"target_modules": ["q_proj", "up_proj"], "task_type": "CAUSAL_LM"}),
    "llama-embeddings": Case(llama, {"target_modules": ["embed_tokens", "lm_head", "v_proj"]}),
    "saved": Case(llama, {"target_modules": ["q_proj"], "modules_to_save": ["lm_head", "norm"]}),
    "gpt2": Case(gpt2, {"target_modules": ["c_attn", "c_proj"], "fan_in_fan_out": True}),
    "convolution": Case(Plain, {"target_modules": ["table", "conv", "out"], "bias": "all"}),
    "bias-all-head": Case(bert, {"bias": "all", "task_type": "TOKEN_CLS", **QV}),
    "dora": Case(bert, {"use_dora": True, **QV}),
    "velora": Case(bert, {"velora_config": VeloraConfig(), **QV}),
    "monteclora": Case(bert, {"monteclora_config": MontecloraConfig(), **QV}),
    "kasa": Case(bert, {"kasa_config": KasaConfig(), **QV}, mergeable=False),
    "tokens": Case(llama, {"target_modules": ["q_proj"], "trainable_token_indices": [1, 3]}),
    "tokens-saved": Case(
        llama,
        {"target_modules": ["q_proj"], "trainable_token_indices": [1, 3]},
        save={"save_embedding_layers": True},
    ),
    "attention": Case(Attention, {"target_modules": ["attn", "out"], "bias": "all"}),
    "tokens-embedding": Case(
        llama,
        {"target_modules": ["q_proj"], "trainable_token_indices": {"embed_tokens": [2]}},
    ),
}


@pytest.fixture(params=CASES.values(), ids=CASES)
def case(request: pytest.FixtureRequest) -> Case:
    found: Case = request.param
    return found


@pytest.fixture
def made(case: Case, tmp_path: Path) -> tuple[nn.Module, PeftModel, Path]:
    """The base, the model with an adapter of random values, and where peft saved it."""
    torch.manual_seed(3)
    base = case.model().eval()
    options = {"r": 4, "lora_alpha": 7, "init_lora_weights": False, **case.options}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # peft warns of embeddings and of biases
        model = get_peft_model(copy.deepcopy(base), LoraConfig(**options)).eval()
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.requires_grad:
                    parameter.copy_(torch.randn_like(parameter) / 4)
        model.save_pretrained(tmp_path / "peft", **case.save)
    return base, model, tmp_path / "peft"


def outputs(model: nn.Module) -> torch.Tensor:
    with torch.no_grad():
        found = model(input_ids=TOKENS)
    return found if isinstance(found, torch.Tensor) else found.logits


def _layers(model: PeftModel) -> dict[str, LoraLayer]:
    return {
        name.removeprefix("base_model.model."): module
        for name, module in model.named_modules()
        if isinstance(module, LoraLayer)
    }


def _tensors(adapter: Adapter) -> dict[str, torch.Tensor]:
    found = {}
    for module, role, tensor in adapter.tensors():
        values = tensor.read()
        assert values.dtype == DTYPES["F32"]
        found[formats.peft.key(adapter, module, role)] = torch.from_numpy(values)
    return found


@pytest.mark.slow
def test_read_write_and_load_again(
    case: Case, made: tuple[nn.Module, PeftModel, Path], tmp_path: Path
) -> None:
    base, model, saved = made
    adapter = inspection.require(formats.read(saved))

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        expected = get_peft_model_state_dict(model, **case.save)
    tensors = _tensors(adapter)
    assert tensors.keys() == expected.keys()
    assert all(torch.equal(tensors[name], expected[name]) for name in expected)

    written = tmp_path / "ours"
    written.mkdir()
    formats.write(adapter, written, to="peft")
    again = formats.read(written).adapter
    assert again is not None and again.config == adapter.config
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", category=FutureWarning)  # peft's own, of transformers
        loaded = PeftModel.from_pretrained(copy.deepcopy(base), written).eval()
    assert torch.equal(outputs(loaded), outputs(model))
    assert not torch.equal(outputs(loaded), outputs(base))


@pytest.mark.slow
def test_ranks_and_scalings_are_those_of_its_layers(
    case: Case, made: tuple[nn.Module, PeftModel, Path]
) -> None:
    _, model, saved = made
    adapter = inspection.require(formats.read(saved))
    layers = _layers(model)
    ranks = lora.ranks(adapter)
    assert ranks is not None
    assert ranks.by_module == {name: layer.r["default"] for name, layer in layers.items()}
    config = lora.parse(adapter.config)
    for name, layer in layers.items():
        assert config.rank(name) == layer.r["default"]
        assert config.scaling(name, layer.r["default"]) == layer.scaling["default"]
    if not case.mergeable:
        with pytest.raises(NotMergeable):
            lora.meaning(adapter)
        return
    found = {part.module: part for part in lora.meaning(adapter) if isinstance(part, LowRank)}
    assert found.keys() == layers.keys()


def test_the_product_of_the_factors_is_its_delta_weight(
    case: Case, made: tuple[nn.Module, PeftModel, Path]
) -> None:
    _, model, saved = made
    adapter = inspection.require(formats.read(saved))
    for part in lora.parts(adapter):
        if not isinstance(part, LowRank):
            continue
        layer = _layers(model)[part.module]
        expected = layer.get_delta_weight("default").detach().double()
        b, a = (torch.from_numpy(t.read()).double() for t in (part.b, part.a))
        product = part.scale * (b.flatten(1) @ a.flatten(1))
        if part.layout == "embedding" or getattr(layer, "fan_in_fan_out", False):
            product = product.T  # as stored: embeddings, and GPT-2's Conv1D
        torch.testing.assert_close(product.reshape(expected.shape), expected, rtol=1e-5, atol=1e-5)


def test_patterns_that_peft_saved_in_another_order_are_refused(tmp_path: Path) -> None:
    """peft sorts the keys of what it saves; trained with `value` first, loaded with `.*` first."""
    options = {"rank_pattern": {"value": 3, ".*": 2}, "r": 4, **QV}
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", category=FutureWarning)
        get_peft_model(bert(), LoraConfig(**options)).save_pretrained(tmp_path)
    reading = formats.read(tmp_path)
    assert list(reading.config["rank_pattern"]) == [".*", "value"]
    with pytest.raises(InvalidAdapter, match=r"value\.lora_A has rank 3, config says r=2"):
        inspection.require(reading)
    with pytest.raises(RuntimeError, match="size mismatch"), warnings.catch_warnings():
        warnings.filterwarnings("ignore", category=FutureWarning)
        PeftModel.from_pretrained(bert(), tmp_path)


def test_the_schema_knows_every_field_of_its_config() -> None:
    assert set(LoraConfig().to_dict()) <= lora.fields()
