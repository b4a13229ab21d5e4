"""Merges of every other method than LoRA, against PEFT's own forward pass on tiny models."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from building import opened, read_adapter

from adapterhub import merging as merge
from adapterhub.merging import Options, Source

torch = pytest.importorskip("torch")
peft = pytest.importorskip("peft")
transformers = pytest.importorskip("transformers")

LLAMA = {
    "vocab_size": 32,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "intermediate_size": 24,
    "max_position_embeddings": 32,
    "tie_word_embeddings": False,
    "attention_bias": True,
}
GPT2 = {"vocab_size": 32, "n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 16}
MODELS = {
    "llama": ("LlamaConfig", LLAMA, "LlamaForCausalLM"),
    "gpt2": ("GPT2Config", GPT2, "GPT2LMHeadModel"),
}
PROJECTIONS = ["q_proj", "v_proj", "down_proj"]


@dataclass(frozen=True)
class Case:
    """`config` is the class of peft's config; `exact`: whether every machine makes the bits."""

    id: str
    config: str
    fields: dict[str, Any] = field(default_factory=dict)
    model: str = "llama"
    exact: bool = True


CASES = [
    Case("ia3", "IA3Config", {"target_modules": PROJECTIONS, "feedforward_modules": ["down_proj"]}),
    Case(
        "ia3-conv1d",
        "IA3Config",
        {"target_modules": ["c_attn", "mlp.c_proj"], "feedforward_modules": ["mlp.c_proj"]},
        "gpt2",
    ),
    Case("loha", "LoHaConfig", {"target_modules": PROJECTIONS, "r": 4, "alpha": 6}),
    Case(
        "loha-patterns",
        "LoHaConfig",
        {
            "target_modules": PROJECTIONS,
            "r": 4,
            "alpha": 6,
            "rank_pattern": {"q_proj": 2},
            "alpha_pattern": {"layers.1.self_attn.v_proj": 3},
        },
    ),
]


def made(case: Case, path: Path) -> Any:
    """Saves a base and an adapter with random values, and gives peft's model of both."""
    torch.manual_seed(len(case.id))
    config, fields, name = MODELS[case.model]
    base = getattr(transformers, name)(getattr(transformers, config)(**fields)).eval()
    randomise(base, every=True)
    base.save_pretrained(path / "base")
    live = peft.get_peft_model(base, getattr(peft, case.config)(**case.fields)).eval()
    randomise(live)
    live.save_pretrained(path / "adapter")
    return live


def randomise(model: Any, *, every: bool = False) -> None:
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad or every:
                parameter.add_(torch.randn_like(parameter) * 0.05)


@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning")
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.id)
def test_a_merge_computes_what_peft_computes(case: Case, tmp_path: Path) -> None:
    live = made(case, tmp_path)
    plan = merge.plan(
        opened(tmp_path / "base"), [Source("it", read_adapter(tmp_path / "adapter"))], Options()
    )
    report = merge.run(plan, tmp_path / "merged")
    assert report.reproducible is case.exact
    assert not any("unused" in fate.fate for fate in plan.fates)
    again = getattr(transformers, MODELS[case.model][2]).from_pretrained(tmp_path / "merged")
    tokens = torch.arange(20).reshape(2, 10)
    with torch.no_grad():
        expected, found = live(tokens).logits, again.eval()(tokens).logits
        with live.disable_adapter():
            plain = live(tokens).logits
    assert float((expected - plain).abs().max()) > 1e-3  # the adapter does something
    np.testing.assert_allclose(found.numpy(), expected.numpy(), atol=1e-5, rtol=1e-5)
