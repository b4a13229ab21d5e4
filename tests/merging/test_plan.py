from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from building import (
    BERT,
    BF16,
    DOWN,
    HIDDEN,
    LLAMA,
    Q0,
    Q1,
    VOCABULARY,
    Arrays,
    arrays_of,
    bert,
    classifier,
    gpt2,
    head,
    llama,
    merged_arrays,
    opened,
    pair,
    plan_of,
    qs,
    random,
    same_bits,
    save_adapter,
    save_base,
    source,
    whole,
)

from adapterhub import merging as merge
from adapterhub.errors import BaseMismatch, InvalidOption, NotMergeable
from adapterhub.tensorfile import FileTensor


@pytest.fixture
def base(tmp_path: Path) -> Path:
    return save_base(tmp_path / "base", llama(), LLAMA)


# --- pure -------------------------------------------------------------------------------------


def test_planning_reads_no_values_but_what_may_be_the_bases_own(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = whole("lm_head.weight", random(1, 10, 8, dtype=np.float16))
    adapter = save_adapter(tmp_path / "a", qs() | other)

    def refuse(*_: Any) -> Any:
        raise RuntimeError("a value was read")

    monkeypatch.setattr(FileTensor, "read", refuse)
    monkeypatch.setattr(FileTensor, "pieces", refuse)
    plan = plan_of(base, adapter, dtype="bfloat16")
    assert plan.changed


def test_reading_a_value_in_that_test_would_be_noticed(
    base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tensor = opened(base).tensors["lm_head.weight"]
    monkeypatch.setattr(FileTensor, "read", lambda _: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        tensor.read()


def test_the_actions_and_bytes_of_a_plan(base: Path, tmp_path: Path) -> None:
    adapter = save_adapter(tmp_path / "a", qs() | whole("lm_head.weight", random(1, 10, 8)))
    plan = plan_of(base, adapter)
    actions = {work.name: work.action for work in plan.changed}
    assert actions == {
        f"{Q0}.weight": "merge",
        f"{Q1}.weight": "merge",
        "lm_head.weight": "replace",
    }
    assert list(plan.works) == list(opened(base).tensors)
    total = sum(array.nbytes for array in llama().values())
    assert plan.read_bytes == total + 4 * 2 * 2 * HIDDEN * 2
    assert plan.write_bytes == (base / "model.safetensors").stat().st_size


def test_every_adapter_tensor_has_one_fate(base: Path, tmp_path: Path) -> None:
    one = save_adapter(tmp_path / "one", qs() | whole("lm_head.weight", random(1, 10, 8)))
    two = save_adapter(tmp_path / "two", pair(DOWN, HIDDEN, 12))
    plan = plan_of(base, one, two)
    fates = [(fate.source, fate.tensor) for fate in plan.fates]
    expected = [
        (number, f"{module}.{role}")
        for number, path in enumerate((one, two))
        for module, role, _ in source(path).adapter.tensors()
    ]
    assert sorted(fates) == sorted(expected)
    texts = {fate.tensor: fate.fate for fate in plan.fates}
    assert texts[f"{DOWN}.lora_A"] == f"merged into {DOWN}.weight"
    assert texts["lm_head.replace:weight"] == "replaces lm_head.weight"


def test_an_adapter_tensor_that_nothing_reads_is_listed_as_unused(
    base: Path, tmp_path: Path
) -> None:
    state = {f"base_model.model.{DOWN}.lora_velora_embed": random(1, 3)}
    tensors = pair(DOWN, HIDDEN, 12) | state
    plan = plan_of(base, save_adapter(tmp_path / "a", tensors, velora_config={"num_groups": 3}))
    texts = {fate.tensor: fate.fate for fate in plan.fates}
    assert len(texts) == 3
    assert texts[f"{DOWN}.lora_velora_embed"] == "unused: velora_config is for training only"


def test_an_adapter_tensor_of_a_module_that_is_left_out_is_listed_as_unused(tmp_path: Path) -> None:
    base = save_base(tmp_path / "base", bert(), BERT)
    head = whole("classifier.weight", random(1, 3, HIDDEN)) | whole("classifier.bias", random(2, 3))
    tensors = pair("bert.pooler.dense", HIDDEN, HIDDEN) | head
    plan = plan_of(base, save_adapter(tmp_path / "a", tensors, task_type="TOKEN_CLS"))
    texts = {fate.tensor: fate.fate for fate in plan.fates}
    assert texts["bert.pooler.dense.lora_A"] == "unused: no pooler.dense.weight there"
    assert texts["classifier.replace:bias"] == "adds classifier.bias"
    assert plan.left_out == (
        "embeddings.position_ids",
        "pooler.dense.bias",
        "pooler.dense.weight",
    )


# --- shards -----------------------------------------------------------------------------------


def test_the_bases_own_shards_are_kept(tmp_path: Path) -> None:
    base = save_base(tmp_path / "base", llama(), LLAMA, shards=3)
    plan = plan_of(base, save_adapter(tmp_path / "a", qs()))
    for shard in plan.shards:
        original = base / shard.filename
        assert shard.nbytes == original.stat().st_size
        assert original.read_bytes().startswith(shard.header)
    assert len(plan.shards) == 3


def test_max_shard_bytes_lays_the_files_out_anew(base: Path, tmp_path: Path) -> None:
    plan = plan_of(base, save_adapter(tmp_path / "a", qs()), max_shard_bytes=600)
    sizes = [sum(spec.nbytes for spec in shard.specs) for shard in plan.shards]
    assert len(sizes) > 3 and max(sizes) <= 600
    merge.run(plan, tmp_path / "out")
    assert (tmp_path / "out/model.safetensors.index.json").is_file()
    assert arrays_of(tmp_path / "out").keys() == llama().keys()


def test_one_shard_under_another_name_keeps_its_index(tmp_path: Path) -> None:
    base = save_base(tmp_path / "base", llama(), LLAMA)
    only = "model-00001-of-00001.safetensors"
    (base / "model.safetensors").rename(base / only)
    index = {"weight_map": dict.fromkeys(llama(), only)}
    (base / "model.safetensors.index.json").write_text(json.dumps(index))
    merged = merged_arrays(base, tmp_path / "out", save_adapter(tmp_path / "a", qs()))
    assert merged.keys() == llama().keys()


@pytest.mark.parametrize("size", [0, -1])
def test_a_shard_size_below_one_is_refused(base: Path, tmp_path: Path, size: int) -> None:
    with pytest.raises(InvalidOption, match="holds nothing"):
        plan_of(base, save_adapter(tmp_path / "a", qs()), max_shard_bytes=size)


# --- several adapters -------------------------------------------------------------------------


def fp32_chain(weight: np.ndarray, tensors: list[tuple[Arrays, float]]) -> np.ndarray:
    """The contract by libm's fma, adapters in order."""
    import oracle

    from adapterhub.kernels import Factor

    start = f"base_model.model.{Q0}"
    factors = [
        Factor(a=t[f"{start}.lora_A.weight"], b=t[f"{start}.lora_B.weight"], scale=np.float32(c))
        for t, c in tensors
    ]
    return oracle.merge(weight, factors)


def test_two_adapters_add_in_order(base: Path, tmp_path: Path) -> None:
    first, second = pair(Q0, HIDDEN, HIDDEN), pair(Q0, HIDDEN, HIDDEN, rank=3, seed=7)
    one = source(save_adapter(tmp_path / "one", first), weight=0.7)
    two = source(save_adapter(tmp_path / "two", second, r=3, lora_alpha=5), weight=-0.3)
    weight = llama()[f"{Q0}.weight"]
    forward = fp32_chain(weight, [(first, 4 / 2 * 0.7), (second, 5 / 3 * -0.3)])
    backward = fp32_chain(weight, [(second, 5 / 3 * -0.3), (first, 4 / 2 * 0.7)])
    assert not same_bits(forward, backward)
    assert same_bits(merged_arrays(base, tmp_path / "ab", one, two)[f"{Q0}.weight"], forward)
    assert same_bits(merged_arrays(base, tmp_path / "ba", two, one)[f"{Q0}.weight"], backward)


def test_a_replacement_needs_weight_one(base: Path, tmp_path: Path) -> None:
    adapter = source(save_adapter(tmp_path / "a", qs() | head(1)), weight=0.5)
    with pytest.raises(NotMergeable, match=r"a replaces lm_head\.weight.*with weight 0\.5"):
        plan_of(base, adapter)


def test_two_providers_of_a_replacement_must_agree(base: Path, tmp_path: Path) -> None:
    one = save_adapter(tmp_path / "one", qs() | head(1))
    other = save_adapter(tmp_path / "other", qs(seed=5) | head(2))
    equal = save_adapter(tmp_path / "equal", qs(seed=5) | head(1))
    with pytest.raises(NotMergeable, match=r"one and other both replace lm_head\.weight"):
        plan_of(base, one, other)
    merged = merged_arrays(base, tmp_path / "out", one, equal)
    assert same_bits(merged["lm_head.weight"], random(1, VOCABULARY, HIDDEN))


def test_adding_to_what_another_adapter_replaces_is_refused(base: Path, tmp_path: Path) -> None:
    one = save_adapter(tmp_path / "one", qs() | head(1))
    two = save_adapter(tmp_path / "two", pair("lm_head", VOCABULARY, HIDDEN))
    with pytest.raises(NotMergeable, match=r"one replaces lm_head\.weight, and two adds to it"):
        plan_of(base, one, two)


def test_an_adapter_may_add_to_what_it_brings_itself(base: Path, tmp_path: Path) -> None:
    """PEFT saves the embedding itself beside its factors, as `base_layer`."""
    start = "base_model.model.model.embed_tokens"
    tensors = {
        f"{start}.base_layer.weight": random(50, VOCABULARY, HIDDEN),
        f"{start}.lora_embedding_A": random(51, 2, VOCABULARY),
        f"{start}.lora_embedding_B": random(52, HIDDEN, 2),
    }
    merged = merged_arrays(base, tmp_path / "out", save_adapter(tmp_path / "a", tensors))
    delta = 2.0 * (tensors[f"{start}.lora_embedding_B"] @ tensors[f"{start}.lora_embedding_A"]).T
    want = tensors[f"{start}.base_layer.weight"] + delta
    np.testing.assert_allclose(merged["model.embed_tokens.weight"], want, rtol=0, atol=1e-5)


def test_adapters_that_make_different_models_are_refused(tmp_path: Path) -> None:
    base = save_base(tmp_path / "base", bert(), BERT)
    classifier = whole("classifier.weight", random(1, 3, HIDDEN)) | whole(
        "classifier.bias", random(2, 3)
    )
    token = save_adapter(tmp_path / "t", classifier, task_type="TOKEN_CLS")
    sequence = save_adapter(tmp_path / "s", classifier, task_type="SEQ_CLS")
    with pytest.raises(NotMergeable, match="BertForSequenceClassification, BertForTokenClass"):
        plan_of(base, token, sequence)
    unsaid = save_adapter(tmp_path / "u", classifier)
    with pytest.raises(NotMergeable, match=r"fits several classes: .*its task is not stated"):
        plan_of(base, unsaid)


# --- labels -----------------------------------------------------------------------------------


def test_labels_must_be_as_many_as_the_heads_rows(tmp_path: Path) -> None:
    base = save_base(tmp_path / "base", bert(), BERT)
    adapter = save_adapter(tmp_path / "a", classifier(4), ["O", "SRC"], task_type="TOKEN_CLS")
    with pytest.raises(BaseMismatch, match=r"has 2 labels \(O, SRC\) and a head of 4 rows"):
        plan_of(base, adapter)


def test_the_result_has_the_labels_of_the_adapter_with_the_head(tmp_path: Path) -> None:
    base = save_base(tmp_path / "base", bert(), BERT)
    query = pair("bert.encoder.layer.0.attention.self.query", HIDDEN, HIDDEN)
    other = save_adapter(tmp_path / "o", query, ["x", "y"])
    labelled = save_adapter(tmp_path / "l", classifier(2), ["no", "yes"], task_type="TOKEN_CLS")
    config = plan_of(base, other, labelled).config
    assert config["id2label"] == {"0": "no", "1": "yes"}
    assert config["label2id"] == {"no": 0, "yes": 1}
    assert config["architectures"] == ["BertForTokenClassification"]


def test_a_head_of_another_size_changes_the_labels_of_the_base(tmp_path: Path) -> None:
    own = {"classifier.weight": random(8, 2, HIDDEN), "classifier.bias": random(9, 2)}
    config = {**BERT, "architectures": ["BertForSequenceClassification"]}
    config |= {"id2label": {"0": "a", "1": "b"}, "label2id": {"a": 0, "b": 1}}
    base = save_base(tmp_path / "base", bert("bert.") | own, config)
    two = plan_of(base, save_adapter(tmp_path / "two", classifier(2), task_type="SEQ_CLS"))
    assert two.config == config
    three = plan_of(base, save_adapter(tmp_path / "three", classifier(3), task_type="SEQ_CLS"))
    assert list(three.config["id2label"].values()) == ["LABEL_0", "LABEL_1", "LABEL_2"]
    token = plan_of(base, save_adapter(tmp_path / "t", classifier(2), task_type="TOKEN_CLS"))
    assert token.model_class == "BertForTokenClassification"
    assert "a" not in token.config["label2id"]


def test_a_number_of_labels_that_no_longer_holds_is_dropped(tmp_path: Path) -> None:
    base = save_base(tmp_path / "base", bert(), {**BERT, "num_labels": 2})
    config = plan_of(base, save_adapter(tmp_path / "a", classifier(3), task_type="SEQ_CLS")).config
    assert "num_labels" not in config and len(config["id2label"]) == 3


def test_bare_files_whose_config_names_the_class_get_its_names(tmp_path: Path) -> None:
    config = {**BERT, "architectures": ["BertForTokenClassification"]}
    base = save_base(tmp_path / "base", bert(), config)
    plan = plan_of(base, save_adapter(tmp_path / "a", classifier(2), task_type="TOKEN_CLS"))
    assert {name.partition(".")[0] for name in plan.works} == {"bert", "classifier"}


# --- dtype ------------------------------------------------------------------------------------


def test_dtype_rounds_the_fp32_accumulation_once(tmp_path: Path) -> None:
    """The factors sit just above the tie of the weight; rounding the weight first loses that."""
    arrays = llama()
    arrays[f"{Q0}.weight"] = np.full((HIDDEN, HIDDEN), 1 + 2.0**-8, np.float32)
    base = save_base(tmp_path / "base", arrays, LLAMA)
    start = f"base_model.model.{Q0}"
    tensors = {
        f"{start}.lora_A.weight": np.full((1, HIDDEN), 2.0**-10, np.float32),
        f"{start}.lora_B.weight": np.full((HIDDEN, 1), 2.0**-10, np.float32),
    }
    adapter = save_adapter(tmp_path / "a", tensors, r=1, lora_alpha=1)
    got = merged_arrays(base, tmp_path / "out", adapter, dtype="bfloat16")
    once = np.float32(1 + 2.0**-8 + 2.0**-20).astype(BF16)
    twice = (np.float32(1 + 2.0**-8).astype(BF16).astype(np.float32) + 2.0**-20).astype(BF16)
    assert once != twice
    assert (got[f"{Q0}.weight"] == once).all()
    assert same_bits(got["lm_head.weight"], arrays["lm_head.weight"].astype(BF16))
    config = plan_of(base, adapter, dtype="bfloat16").config
    assert (config["dtype"], LLAMA["dtype"]) == ("bfloat16", "float32")


def test_a_replacement_is_rounded_once_to_what_it_replaces(tmp_path: Path) -> None:
    base = save_base(tmp_path / "base", llama(BF16), LLAMA)
    adapter = save_adapter(tmp_path / "a", head(1))
    kept = merged_arrays(base, tmp_path / "kept", adapter)["lm_head.weight"]
    assert same_bits(kept, random(1, VOCABULARY, HIDDEN).astype(BF16))
    wide = merged_arrays(base, tmp_path / "wide", adapter, dtype="float32")
    assert same_bits(wide["lm_head.weight"], random(1, VOCABULARY, HIDDEN))
    assert same_bits(wide["model.norm.weight"], llama(BF16)["model.norm.weight"].astype(np.float32))


def test_dtype_leaves_integers_alone_and_refuses_fp64(tmp_path: Path) -> None:
    arrays = llama() | {"counter": np.arange(3), "flags": np.array([True, False])}
    base = save_base(tmp_path / "base", arrays, LLAMA)
    adapter = save_adapter(tmp_path / "a", qs())
    got = merged_arrays(base, tmp_path / "out", adapter, dtype="float16")
    assert same_bits(got["counter"], arrays["counter"])
    assert same_bits(got["flags"], arrays["flags"])
    assert got["model.norm.weight"].dtype == np.float16
    wide = save_base(tmp_path / "wide", llama() | {"extra": np.ones(2)}, LLAMA)
    assert same_bits(merged_arrays(wide, tmp_path / "same", adapter)["extra"], np.ones(2))
    with pytest.raises(NotMergeable, match="extra is fp64"):
        plan_of(wide, adapter, dtype="float32")


# --- unknown architectures --------------------------------------------------------------------


def test_an_unknown_model_type_merges_where_the_modules_match(tmp_path: Path) -> None:
    base = save_base(tmp_path / "base", llama(), {"model_type": "no-such-model"})
    adapter = save_adapter(tmp_path / "a", qs())
    plan = plan_of(base, adapter)
    assert plan.model_class is None
    assert plan.notes == ("model_type 'no-such-model' is not known: names compared as they stand",)
    merged = merged_arrays(base, tmp_path / "out", adapter)
    assert not same_bits(merged[f"{Q0}.weight"], llama()[f"{Q0}.weight"])


def test_an_unknown_model_type_with_a_new_head_is_refused(tmp_path: Path) -> None:
    base = save_base(tmp_path / "base", llama(), {"model_type": "no-such-model"})
    with pytest.raises(BaseMismatch) as caught:
        plan_of(base, save_adapter(tmp_path / "a", qs() | classifier(2), task_type="SEQ_CLS"))
    assert all("'no-such-model' is not known" in detail for detail in caught.value.details)


def test_an_unknown_layout_is_not_guessed(tmp_path: Path) -> None:
    base = save_base(tmp_path / "base", gpt2(), {"model_type": "no-such-model"})
    tensors = pair("h.0.attn.c_proj", HIDDEN, HIDDEN)
    with pytest.raises(NotMergeable, match="says that some weights are stored transposed"):
        plan_of(base, save_adapter(tmp_path / "a", tensors, fan_in_fan_out=True))
