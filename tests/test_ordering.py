"""The order of modules, as transformers builds them."""

from __future__ import annotations

import pytest

from adapterhub._introspect import ordered

transformers = pytest.importorskip("transformers")


def test_blocks_by_number_and_what_is_in_them_as_it_was_built() -> None:
    names = ("self_attn.k_proj", "self_attn.q_proj", "mlp.down_proj")
    paths = [f"model.layers.{number}.{name}" for name in names for number in (10, 2)]
    assert ordered("llama", "LlamaForCausalLM", ["lm_head", *paths, "model.embed_tokens"]) == [
        "model.embed_tokens",
        *(
            f"model.layers.{n}.{name}"
            for n in (2, 10)
            for name in ("self_attn.q_proj", "self_attn.k_proj", "mlp.down_proj")
        ),
        "lm_head",
    ]


@pytest.mark.parametrize(
    ("kind", "model"), [("BertConfig", "BertForMaskedLM"), ("T5Config", "T5ForQuestionAnswering")]
)
def test_it_is_the_order_of_named_modules(kind: str, model: str) -> None:
    import torch

    config = getattr(transformers, kind)(num_hidden_layers=12, num_layers=12)
    with torch.device("meta"):
        live = getattr(transformers, model)(config)
    paths = [name for name, module in live.named_modules() if isinstance(module, torch.nn.Linear)]
    assert ordered(config.model_type, model, sorted(paths)) == paths


def test_what_transformers_does_not_know() -> None:
    assert ordered("llama", "LlamaForCausalLM", ["model.layers.0.no_proj"]) is None
    assert ordered("llama", "NoSuchModel", ["lm_head"]) is None
    assert ordered("no_such_type", "LlamaForCausalLM", ["lm_head"]) is None
