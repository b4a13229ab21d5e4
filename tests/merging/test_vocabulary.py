"""Adapters for another number of tokens than the base has, and rows of single tokens."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from building import (
    HIDDEN,
    LLAMA,
    VOCABULARY,
    Arrays,
    arrays_of,
    llama,
    merged_arrays,
    opened,
    pair,
    plan_of,
    qs,
    random,
    run,
    same_bits,
    save_adapter,
    save_base,
    source,
    whole,
)
from peft_models import BART, BERT, DECODER, Model, same
from test_against_peft import Case, load, randomise

from adapterhub import merging as merge
from adapterhub.errors import BaseMismatch, NotMergeable
from adapterhub.merging import Source

EMBED, HEAD = "model.embed_tokens", "lm_head"


# --- another number of tokens, against PEFT ---------------------------------------------------

SAVED = {"target_modules": ["q_proj"]}
BOTH = {"target_modules": ["q_proj", "embed_tokens", "lm_head"]}
ROWS = {**SAVED, "trainable_token_indices": [3, 24, 26]}
RESIZED: dict[str, tuple[str, dict[str, Any], str, bool, dict[str, Any], int]] = {
    "saved": ("LlamaConfig", DECODER, "LlamaForCausalLM", False, SAVED, 27),
    "fewer": ("LlamaConfig", DECODER, "LlamaForCausalLM", False, SAVED, 21),
    "tied": ("LlamaConfig", DECODER, "LlamaForCausalLM", True, SAVED, 27),
    "lora": ("LlamaConfig", DECODER, "LlamaForCausalLM", False, BOTH, 27),
    "tied lora": ("LlamaConfig", DECODER, "LlamaForCausalLM", True, BOTH, 27),
    "head": (
        "LlamaConfig",
        DECODER,
        "LlamaForCausalLM",
        True,
        {"target_modules": ["q_proj", "lm_head"]},
        27,
    ),
    "rows": ("LlamaConfig", DECODER, "LlamaForCausalLM", True, ROWS, 27),
    "bert": ("BertConfig", BERT, "BertForMaskedLM", True, {"target_modules": ["query"]}, 27),
}


def trained(model: Model, tokens: int, path: Path) -> Case:
    torch = pytest.importorskip("torch")
    peft = pytest.importorskip("peft")
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(tokens)
    known = getattr(transformers, model.trained)
    base = known(getattr(transformers, model.config)(**model.fields)).eval()
    randomise(base)
    base.save_pretrained(path / "base")
    live = known.from_pretrained(path / "base")
    live.resize_token_embeddings(tokens, mean_resizing=False)
    settings = peft.LoraConfig(r=2, lora_alpha=3, init_lora_weights=False, **model.lora)
    live = peft.get_peft_model(live, settings).eval()
    randomise(live, only_trained=True)
    live.save_pretrained(path / "adapter", save_embedding_layers=True)
    return Case(model, path / "base", path / "adapter", live)


@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning")
@pytest.mark.parametrize("name", RESIZED)
def test_another_number_of_tokens_computes_what_peft_computes(
    name: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    import torch

    config, fields, model_class, tied, lora, tokens = RESIZED[name]
    fields = {**fields, "tie_word_embeddings": tied}
    model = same(name, config, fields, model_class, **lora)
    case = trained(model, tokens, tmp_path)
    merge.run(merge.plan(opened(case.base), [Source("it", read(case.adapter))]), tmp_path / "out")
    loaded = load(case, tmp_path / "out", caplog)
    assert loaded.config.vocab_size == tokens
    assert loaded.get_input_embeddings().weight.shape[0] == tokens
    ids = torch.arange(tokens - 12, tokens).repeat(2, 1)
    with torch.no_grad():
        got, want = loaded(input_ids=ids).logits, case.live(input_ids=ids).logits
    assert want.shape[-1] == tokens and want.abs().max() > 0.01
    assert (got - want).abs().max() <= 1e-5
    before = json.loads((case.base / "config.json").read_text())
    after = json.loads((tmp_path / "out/config.json").read_text())
    untied = {"tie_word_embeddings": False} if name in ("tied lora", "head") else {}
    assert after == {**before, "vocab_size": tokens, **untied}


def read(path: Path) -> Any:
    return source(path).adapter


@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning")
def test_a_buffer_with_a_column_for_each_token_cannot_be_resized(tmp_path: Path) -> None:
    lora = {"target_modules": ["fc1"]}
    model = same("bart", "BartConfig", BART, "BartForConditionalGeneration", **lora)
    case = trained(model, 27, tmp_path)
    with pytest.raises(BaseMismatch, match="for 27 tokens and the base for 24") as caught:
        merge.plan(opened(case.base), [Source("it", read(case.adapter))])
    assert caught.value.details == ("final_logits_bias has 24",)


# --- what is missing --------------------------------------------------------------------------


@pytest.fixture
def base(tmp_path: Path) -> Path:
    return save_base(tmp_path / "base", llama(), {**LLAMA, "vocab_size": VOCABULARY})


def embedding(rows: int, seed: int = 1) -> Arrays:
    return whole(f"{EMBED}.weight", random(seed, rows, HIDDEN))


def head(rows: int, seed: int = 2) -> Arrays:
    return whole(f"{HEAD}.weight", random(seed, rows, HIDDEN))


@pytest.mark.parametrize(
    ("tensors", "lacking"),
    [
        (embedding(12), "lm_head.weight has 10"),
        (head(12), "model.embed_tokens.weight has 10"),
        (embedding(12) | head(13), "model.embed_tokens.weight has 12"),
    ],
)
def test_what_lacks_rows_is_named(
    base: Path, tmp_path: Path, tensors: Arrays, lacking: str
) -> None:
    with pytest.raises(BaseMismatch, match=r"for 1\d tokens and the base for 10") as caught:
        plan_of(base, save_adapter(tmp_path / "a", qs() | tensors))
    assert caught.value.details == (lacking,)
    assert "save_embedding_layers=True" in caught.value.remedy


def test_a_tied_head_follows_what_is_loaded_into_the_shared_weight(tmp_path: Path) -> None:
    arrays = {name: a for name, a in llama().items() if name != "lm_head.weight"}
    tied = {**LLAMA, "tie_word_embeddings": True, "vocab_size": VOCABULARY}
    base = save_base(tmp_path / "base", arrays, tied)
    both = plan_of(base, save_adapter(tmp_path / "a", embedding(12)))
    assert both.config == {**tied, "vocab_size": 12}
    assert both.works.keys() == arrays.keys()
    copied = save_adapter(tmp_path / "b", embedding(12), modules_to_save=["embed_tokens"])
    with pytest.raises(BaseMismatch, match="for 12 tokens") as caught:
        plan_of(base, copied)
    assert caught.value.details == ("lm_head.weight has 10",)


def test_factors_for_more_tokens_need_the_weight_that_they_belong_to(
    base: Path, tmp_path: Path
) -> None:
    factors = pair(HEAD, 12, HIDDEN)
    with pytest.raises(BaseMismatch) as caught:
        plan_of(base, save_adapter(tmp_path / "a", factors))
    assert "lm_head: the adapter has factors of shape [12, 8]" in caught.value.details[0]
    beside = embedding(12) | whole(f"{HEAD}.base_layer.weight", random(5, 12, HIDDEN))
    got = merged_arrays(base, tmp_path / "out", save_adapter(tmp_path / "b", factors | beside))
    a, b = factors.values()
    want = random(5, 12, HIDDEN) + 2.0 * (b @ a)
    np.testing.assert_allclose(got["lm_head.weight"], want, rtol=0, atol=1e-5)


def test_only_rows_may_differ(base: Path, tmp_path: Path) -> None:
    wide = whole(f"{EMBED}.weight", random(1, 12, HIDDEN + 1)) | head(12)
    with pytest.raises(BaseMismatch) as caught:
        plan_of(base, save_adapter(tmp_path / "a", wide))
    assert "has shape [12, 9], the base [10, 8]" in caught.value.details[0]


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ({}, {"vocab_size": 12}),
        ({"vocab_size": 10}, {"vocab_size": 12}),
        ({"text_config": {"vocab_size": 10, "x": 1}}, {"text_config": {"vocab_size": 12, "x": 1}}),
        ({"text_config": {}, "vocab_size": 10}, {"text_config": {}, "vocab_size": 12}),
    ],
)
def test_the_number_of_tokens_is_said_where_it_was_said(
    tmp_path: Path, config: dict[str, Any], expected: dict[str, Any]
) -> None:
    base = save_base(tmp_path / "base", llama(), {**LLAMA, **config})
    plan = plan_of(base, save_adapter(tmp_path / "a", embedding(12) | head(12)))
    assert plan.config == {**LLAMA, **expected}
    tokenizer = {"tokenizer.json": tmp_path / "t.json"}
    vocabulary = {f"t{i}": i for i in range(12)}
    tokenizer["tokenizer.json"].write_text(json.dumps({"model": {"vocab": vocabulary}}))
    fits = source(save_adapter(tmp_path / "b", embedding(12) | head(12)), tokenizer=tokenizer)
    assert plan_of(base, fits).notes == ("the tokenizer is that of b",)


# --- what the base has already ----------------------------------------------------------------


def test_a_copy_of_the_bases_own_weight_changes_nothing(base: Path, tmp_path: Path) -> None:
    own = whole(f"{EMBED}.base_layer.weight", llama()[f"{EMBED}.weight"])
    start = f"base_model.model.{EMBED}"
    factors = {
        f"{start}.lora_embedding_A": random(51, 2, VOCABULARY),
        f"{start}.lora_embedding_B": random(52, HIDDEN, 2),
    }
    half = source(save_adapter(tmp_path / "a", own | factors), weight=0.5)
    plan = plan_of(base, half)
    fates = {fate.tensor: fate.fate for fate in plan.fates}
    assert fates[f"{EMBED}.replace:weight"] == f"the same as the base's {EMBED}.weight"
    assert [(work.name, work.action) for work in plan.changed] == [(f"{EMBED}.weight", "merge")]
    other = source(save_adapter(tmp_path / "b", pair(HEAD, VOCABULARY, HIDDEN)), weight=2.0)
    assert len(plan_of(base, half, other).changed) == 2
    run(base, tmp_path / "out", half)
    delta = (factors[f"{start}.lora_embedding_B"] @ factors[f"{start}.lora_embedding_A"]).T
    got = arrays_of(tmp_path / "out")[f"{EMBED}.weight"]
    np.testing.assert_allclose(got, llama()[f"{EMBED}.weight"] + delta, rtol=0, atol=1e-5)


# --- files that hold both names of a weight ---------------------------------------------------


@pytest.mark.parametrize("equal", [True, False])
def test_files_with_both_names_of_a_tied_weight(tmp_path: Path, equal: bool) -> None:
    arrays = llama()
    if equal:
        arrays["lm_head.weight"] = arrays[f"{EMBED}.weight"]
    base = save_base(tmp_path / "base", arrays, {**LLAMA, "tie_word_embeddings": True})
    untouched = plan_of(base, save_adapter(tmp_path / "q", qs()))
    assert untouched.config["tie_word_embeddings"] and untouched.notes == ()
    changed = plan_of(base, save_adapter(tmp_path / "h", pair(HEAD, VOCABULARY, HIDDEN)))
    assert changed.config["tie_word_embeddings"] is False
    assert [work.name for work in changed.changed] == ["lm_head.weight"]
    assert changed.notes == ("untied: lm_head.weight and model.embed_tokens.weight now differ",)
    shared = plan_of(base, save_adapter(tmp_path / "e", embedding(VOCABULARY)))
    names = [f"{EMBED}.weight", "lm_head.weight"] if equal else [f"{EMBED}.weight"]
    assert [work.name for work in shared.changed] == names
    assert shared.config["tie_word_embeddings"] is equal


def test_an_untied_tensor_is_hashed_like_any_other(tmp_path: Path) -> None:
    arrays = {name: a for name, a in llama().items() if name != "lm_head.weight"}
    base = save_base(tmp_path / "base", arrays, {**LLAMA, "tie_word_embeddings": True}, shards=2)
    start = f"base_model.model.{EMBED}"
    factors = {
        f"{start}.lora_embedding_A": random(51, 2, VOCABULARY),
        f"{start}.lora_embedding_B": random(52, HIDDEN, 2),
    }
    adapter = save_adapter(tmp_path / "a", factors)
    report = run(base, tmp_path / "out", adapter)
    assert report.actions["untie"] == 1
    assert same_bits(arrays_of(tmp_path / "out")["lm_head.weight"], arrays[f"{EMBED}.weight"])
    assert opened(tmp_path / "out").weights_root() == report.weights_root
    plan = plan_of(base, adapter)
    assert list(plan.works) == [*opened(base).tensors, "lm_head.weight"]
    homes = {spec.name: shard.filename for shard in plan.shards for spec in shard.specs}
    assert homes["lm_head.weight"] == homes[f"{EMBED}.weight"]
    narrow = merged_arrays(base, tmp_path / "narrow", adapter, dtype="bfloat16")
    assert narrow["lm_head.weight"].dtype.name == "bfloat16"


def test_files_that_hold_only_the_head_of_a_tied_pair(tmp_path: Path) -> None:
    """transformers ties either way."""
    arrays = {name: a for name, a in llama().items() if name != f"{EMBED}.weight"}
    base = save_base(tmp_path / "base", arrays, {**LLAMA, "tie_word_embeddings": True})
    start = f"base_model.model.{EMBED}"
    factors = {
        f"{start}.lora_embedding_A": random(51, 2, VOCABULARY),
        f"{start}.lora_embedding_B": random(52, HIDDEN, 2),
    }
    got = merged_arrays(base, tmp_path / "out", save_adapter(tmp_path / "a", factors))
    assert same_bits(got["lm_head.weight"], arrays["lm_head.weight"])
    delta = 2.0 * (factors[f"{start}.lora_embedding_B"] @ factors[f"{start}.lora_embedding_A"]).T
    want = arrays["lm_head.weight"] + delta
    np.testing.assert_allclose(got[f"{EMBED}.weight"], want, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("fields", "extra", "untied"),
    [({}, False, False), ({"alpha_pattern": {"lm_head": 5}}, False, True), ({}, True, True)],
)
def test_equal_factors_of_both_names_keep_them_tied(
    tmp_path: Path, fields: dict[str, Any], extra: bool, untied: bool
) -> None:
    """Unless they are scaled differently, or a magnitude belongs to rows of another kind."""
    arrays = {name: a for name, a in llama().items() if name != "lm_head.weight"}
    base = save_base(tmp_path / "base", arrays, {**LLAMA, "tie_word_embeddings": True})
    a, b = random(51, 2, VOCABULARY), random(52, HIDDEN, 2)
    start = "base_model.model"
    factors = {
        f"{start}.{EMBED}.lora_embedding_A": a,
        f"{start}.{EMBED}.lora_embedding_B": b,
        f"{start}.{HEAD}.lora_A.weight": np.ascontiguousarray(b.T),
        f"{start}.{HEAD}.lora_B.weight": np.ascontiguousarray(a.T),
    }
    if extra:
        factors[f"{start}.{EMBED}.lora_magnitude_vector"] = random(53, HIDDEN)
        factors[f"{start}.{HEAD}.lora_magnitude_vector"] = random(54, VOCABULARY)
    adapter = save_adapter(tmp_path / "a", factors, use_dora=extra, **fields)
    plan = plan_of(base, adapter)
    assert ("lm_head.weight" in plan.works) == untied
    fates = {fate.tensor: fate.fate for fate in plan.fates}
    shares = f"merged into {EMBED}.weight, which lm_head.weight shares"
    assert fates[f"{HEAD}.lora_A"] == ("merged into lm_head.weight" if untied else shares)


T5_NAMES = ("shared", "encoder.embed_tokens", "decoder.embed_tokens", "lm_head")
T5 = {"model_type": "t5", "architectures": ["T5ForConditionalGeneration"]}


@pytest.mark.parametrize("stored", [T5_NAMES[:1], (T5_NAMES[0], T5_NAMES[3])])
def test_four_names_of_one_weight(tmp_path: Path, stored: tuple[str, ...]) -> None:
    """The names are tied whatever config.json says, unless the files hold two values."""
    arrays = {f"{name}.weight": random(i, VOCABULARY, HIDDEN) for i, name in enumerate(stored)}
    base = save_base(tmp_path / "base", arrays, T5)
    new = random(7, VOCABULARY, HIDDEN)
    alike = {key: a for name in T5_NAMES for key, a in whole(f"{name}.weight", new).items()}
    modules = {"modules_to_save": list(T5_NAMES)}
    got = merged_arrays(base, tmp_path / "out", save_adapter(tmp_path / "a", alike, **modules))
    assert got.keys() == arrays.keys()
    assert all(same_bits(array, new) for array in got.values())
    apart = alike | whole("decoder.embed_tokens.weight", random(8, VOCABULARY, HIDDEN))
    with pytest.raises(NotMergeable, match="no config can say that of this model"):
        plan_of(base, save_adapter(tmp_path / "b", apart, **modules))
    on_head = save_adapter(tmp_path / "c", pair(HEAD, VOCABULARY, HIDDEN))
    if len(stored) == 1:
        with pytest.raises(NotMergeable, match=r"shared\.weight and lm_head\.weight share one"):
            plan_of(base, on_head)
    else:
        plan = plan_of(base, on_head)
        assert [work.name for work in plan.changed] == ["lm_head.weight"]
        assert plan.config == T5


def test_the_flag_is_cleared_where_it_stands_and_on_top(tmp_path: Path) -> None:
    arrays = {name: a for name, a in llama().items() if name != "lm_head.weight"}
    config = {**LLAMA, "tie_word_embeddings": True, "text_config": {"tie_word_embeddings": True}}
    base = save_base(tmp_path / "base", arrays, config)
    plan = plan_of(base, save_adapter(tmp_path / "a", pair(HEAD, VOCABULARY, HIDDEN)))
    assert plan.config["tie_word_embeddings"] is False
    assert plan.config["text_config"] == {"tie_word_embeddings": False}


def test_what_an_unknown_architecture_ties_is_not_guessed(tmp_path: Path) -> None:
    arrays = {name: a for name, a in llama().items() if name != "lm_head.weight"}
    unknown = {"model_type": "no-such-model"}
    adapter = save_adapter(tmp_path / "a", embedding(VOCABULARY))
    with pytest.raises(NotMergeable, match="cannot be seen which tensors share this weight"):
        plan_of(save_base(tmp_path / "tied", arrays, unknown), adapter)
    said = {**unknown, "tie_word_embeddings": False}
    assert len(plan_of(save_base(tmp_path / "said", arrays, said), adapter).changed) == 1
    assert len(plan_of(save_base(tmp_path / "both", llama(), unknown), adapter).changed) == 1


# --- rows -------------------------------------------------------------------------------------


def rows(indices: list[int], seed: int = 3, module: str = EMBED, **fields: Any) -> dict[str, Any]:
    values = random(seed, len(indices), HIDDEN)
    name = f"base_model.model.{module}.token_adapter.trainable_tokens_delta"
    short = module.rpartition(".")[2]
    return {"arrays": {name: values}, "trainable_token_indices": {short: indices}, **fields}


def test_rows_take_the_place_of_the_bases(base: Path, tmp_path: Path) -> None:
    adapter = save_adapter(tmp_path / "a", **rows([7, 2]))
    plan = plan_of(base, adapter)
    (work,) = plan.changed
    assert (work.name, work.action) == (f"{EMBED}.weight", "rows")
    assert [(row.first // HIDDEN, row.index) for row in work.rows] == [(2, 1), (7, 0)]
    (fate,) = plan.fates
    assert fate.fate == f"replaces 2 rows of {EMBED}.weight"
    want = llama()[f"{EMBED}.weight"].copy()
    want[[7, 2]] = random(3, 2, HIDDEN)
    assert same_bits(merged_arrays(base, tmp_path / "out", adapter)[f"{EMBED}.weight"], want)


def test_adapters_may_bring_different_rows_of_one_embedding(base: Path, tmp_path: Path) -> None:
    one = save_adapter(tmp_path / "one", **rows([1, 2]))
    two = save_adapter(tmp_path / "two", **rows([5], seed=4))
    equal = save_adapter(tmp_path / "equal", **rows([1, 2]))
    want = llama()[f"{EMBED}.weight"].copy()
    want[[1, 2]], want[5] = random(3, 2, HIDDEN), random(4, 1, HIDDEN)[0]
    got = merged_arrays(base, tmp_path / "out", one, two, equal)[f"{EMBED}.weight"]
    assert same_bits(got, want)
    other = save_adapter(tmp_path / "other", **rows([2, 8], seed=9))
    says = rf"row 2 of {EMBED}\.weight is replaced by one and other, with different values"
    with pytest.raises(NotMergeable, match=says):
        plan_of(base, one, other)


def test_rows_need_weight_one(base: Path, tmp_path: Path) -> None:
    half = source(save_adapter(tmp_path / "a", **rows([1])), weight=0.5)
    with pytest.raises(NotMergeable, match=r"a replaces rows of .* with weight 0\.5"):
        plan_of(base, half)


def test_rows_of_one_adapter_and_another_change_of_another(base: Path, tmp_path: Path) -> None:
    one = save_adapter(tmp_path / "one", **rows([1]))
    whole_one = save_adapter(tmp_path / "two", embedding(VOCABULARY))
    start = f"base_model.model.{EMBED}"
    factors = {
        f"{start}.lora_embedding_A": random(51, 2, VOCABULARY),
        f"{start}.lora_embedding_B": random(52, HIDDEN, 2),
    }
    for other in (whole_one, save_adapter(tmp_path / "three", factors)):
        with pytest.raises(NotMergeable, match=rf"one and \w+: rows .* meet in {EMBED}\.weight"):
            plan_of(base, one, other)


@pytest.mark.parametrize(
    ("indices", "module", "says"),
    [
        ([10], EMBED, "has a row for token 10, the base 10 rows"),
        ([1], "model.layers.9.up_proj", "the base has no such tensor"),
        ([1], "model.layers.0.mlp.down_proj", r"1 rows of shape \[8\], the base a weight of"),
    ],
)
def test_rows_that_do_not_fit(
    base: Path, tmp_path: Path, indices: list[int], module: str, says: str
) -> None:
    with pytest.raises(BaseMismatch, match=says):
        plan_of(base, save_adapter(tmp_path / "a", **rows(indices, module=module)))
