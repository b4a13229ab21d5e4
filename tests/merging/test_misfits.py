from __future__ import annotations

from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from building import (
    BERT,
    DOWN,
    GPT2,
    HIDDEN,
    LLAMA,
    Q0,
    VOCABULARY,
    Arrays,
    bert,
    gpt2,
    llama,
    merged_arrays,
    pair,
    plan_of,
    qs,
    random,
    save_adapter,
    save_base,
    source,
    whole,
)

import adapterhub
from adapterhub.errors import BaseMismatch, InvalidBase, InvalidOption, NotMergeable
from adapterhub.merging import Options


@pytest.fixture
def base(tmp_path: Path) -> Path:
    return save_base(tmp_path / "base", llama(), LLAMA)


def test_every_mismatch_of_every_adapter_is_listed(base: Path, tmp_path: Path) -> None:
    one = pair(Q0, HIDDEN + 1, HIDDEN) | pair("model.layers.9.mlp.up_proj", 12, HIDDEN)
    one |= whole("lm_head.weight", random(1, 10, 9)) | whole("classifier.weight", random(2, 3))
    two = pair(DOWN, HIDDEN, 99)
    with pytest.raises(BaseMismatch, match=r"one, two does not fit .*: 5 mismatches") as caught:
        plan_of(base, save_adapter(tmp_path / "one", one), save_adapter(tmp_path / "two", two))
    assert sorted(caught.value.details) == [
        "one: classifier.weight: neither the base nor any llama class has it",
        "one: lm_head.weight: the adapter has shape [10, 9], the base [10, 8]",
        f"one: {Q0}: the adapter has factors of shape [9, 8], the base a weight of [8, 8]",
        "one: model.layers.9.mlp.up_proj.weight: the base has no such tensor",
        f"two: {DOWN}: the adapter has factors of shape [8, 99], the base a weight of [8, 12]",
    ]
    assert {path.name for path in tmp_path.iterdir()} == {"base", "one", "two"}


def test_a_changed_class_needs_its_whole_head(tmp_path: Path) -> None:
    base = save_base(tmp_path / "base", bert(), BERT)
    only = whole("classifier.weight", random(1, 3, HIDDEN))
    adapter = save_adapter(tmp_path / "a", only, task_type="TOKEN_CLS")
    with pytest.raises(BaseMismatch, match="a BertForTokenClassification needs") as caught:
        plan_of(base, adapter)
    assert caught.value.details == ("classifier.bias",)


def test_a_changed_class_needs_its_whole_backbone(tmp_path: Path) -> None:
    """BertForMaskedLM has no pooler; a sequence classifier on it would load a random one."""
    arrays = {name: a for name, a in bert("bert.").items() if "pooler" not in name}
    config = {**BERT, "architectures": ["BertForMaskedLM"]}
    base = save_base(tmp_path / "base", arrays, config)
    classifier = whole("classifier.weight", random(1, 3, HIDDEN)) | whole(
        "classifier.bias", random(2, 3)
    )
    with pytest.raises(BaseMismatch) as caught:
        plan_of(base, save_adapter(tmp_path / "a", classifier, task_type="SEQ_CLS"))
    assert caught.value.details == ("bert.pooler.dense.bias", "bert.pooler.dense.weight")


@pytest.mark.parametrize("prefix", ["", "transformer."])
def test_square_conv1d_weights_are_transposed_however_the_files_spell_them(
    tmp_path: Path, prefix: str
) -> None:
    base = save_base(tmp_path / "base", gpt2(prefix), GPT2)
    tensors = pair("transformer.h.0.attn.c_proj", HIDDEN, HIDDEN)
    merged = merged_arrays(base, tmp_path / "out", save_adapter(tmp_path / "a", tensors))
    a, b = tensors.values()
    want = gpt2()["h.0.attn.c_proj.weight"] + (2 * (b @ a)).T
    got = merged[f"{prefix}h.0.attn.c_proj.weight"]
    np.testing.assert_allclose(got, want, rtol=0, atol=1e-5)
    assert not np.allclose(got, gpt2()["h.0.attn.c_proj.weight"] + 2 * (b @ a), atol=1e-2)


@pytest.mark.parametrize("dtype", [np.int8, np.uint8, np.float64, "F8_E4M3"])
def test_weights_outside_the_formula_are_refused_by_name(tmp_path: Path, dtype: Any) -> None:
    dtype = ml_dtypes.float8_e4m3fn if dtype == "F8_E4M3" else dtype
    arrays = llama()
    arrays[f"{Q0}.weight"] = np.ones((HIDDEN * HIDDEN // 2, 1), dtype)  # packed, another shape
    base = save_base(tmp_path / "base", arrays, LLAMA)
    with pytest.raises(NotMergeable, match=rf"{Q0}\.weight of .* is stored as [IUF]\d"):
        plan_of(base, save_adapter(tmp_path / "a", qs()))


GPTQ = {"quant_method": "gptq", "bits": 4}
NF4 = {"quant_method": "bitsandbytes", "load_in_4bit": True}
INT8 = {"load_in_8bit": True}  # as before transformers named the method
FP8 = {"quant_method": "fp8"}
PACKED = np.ones((HIDDEN * HIDDEN // 2, 1), np.uint8)
E4M3 = np.ones((HIDDEN, HIDDEN), ml_dtypes.float8_e4m3fn)
SCALE = np.ones((1, 1), np.float32)
QUANTISED: dict[str, tuple[dict[str, Any], Arrays, str]] = {
    "gptq": (GPTQ, {"qweight": PACKED.astype(np.int32)}, r'"gptq", 4 bits\): .*\.qweight stands'),
    "awq": ({"quant_method": "awq"}, {"qweight": PACKED.astype(np.int32)}, r'"awq"\): '),
    "nf4": (NF4, {"weight": PACKED, "weight.absmax": SCALE}, '"bitsandbytes", 4 bits'),
    "int8": (INT8, {"weight": np.ones((8, 8), np.int8), "SCB": SCALE}, '"bitsandbytes", 8 bits'),
    "fp8": (FP8, {"weight": E4M3, "weight_scale_inv": SCALE}, r"weight_scale_inv stands in it"),
    "fp8 alone": (FP8, {"weight": E4M3}, r'as F8_E4M3, quantised \("fp8"\); only F32'),
    "as it were plain": ({}, {"weight": random(1, 8, 8), "weight_scale": SCALE}, "weight_scale st"),
    "no method": ({"bits": 3}, {"weight": PACKED}, r"by a method without a name\W+3 bits"),
    "hostile": ({"quant_method": "\n" * 999}, {"weight": PACKED}, r'quantised \("\\n'),
}


@pytest.mark.parametrize("name", QUANTISED)
def test_quantised_bases_are_refused_by_the_name_of_the_method(tmp_path: Path, name: str) -> None:
    config, module, says = QUANTISED[name]
    arrays = llama()
    del arrays[f"{Q0}.weight"]
    arrays |= {f"{Q0}.{parameter}": array for parameter, array in module.items()}
    said = {"quantization_config": config} if config else {}
    base = save_base(tmp_path / "base", arrays, {**LLAMA, **said})
    with pytest.raises(NotMergeable, match=says) as caught:
        plan_of(base, save_adapter(tmp_path / "a", qs()))
    assert caught.value.remedy.startswith("give the full-precision base")
    untouched = save_adapter(tmp_path / "b", pair("lm_head", VOCABULARY, HIDDEN))
    assert [work.name for work in plan_of(base, untouched).changed] == ["lm_head.weight"]


def test_a_base_of_pickles_is_refused_with_the_command_that_converts(tmp_path: Path) -> None:
    base = save_base(tmp_path / "base", llama(), LLAMA)
    (base / "model.safetensors").rename(base / "pytorch_model.bin")
    adapter = save_adapter(tmp_path / "a", qs())
    with pytest.raises(InvalidBase, match="is a pickle") as caught:
        adapterhub.plan_merge(base, [adapter])
    assert "python -c " in caught.value.remedy and "save_pretrained" in caught.value.remedy


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"alora_invocation_tokens": [1, 2]}, "of the alora variant of LoRA"),
        ({"init_lora_weights": "pissa_niter_4"}, "init_lora_weights is 'pissa'"),
        ({"layer_replication": [[0, 2]]}, "of the layer_replication variant"),
    ],
)
def test_variants_outside_the_formula_are_refused(
    base: Path, tmp_path: Path, fields: dict[str, Any], says: str
) -> None:
    with pytest.raises(NotMergeable, match=says):
        plan_of(base, save_adapter(tmp_path / "a", qs(), **fields))


def test_a_replacement_of_another_kind_of_number_is_refused(tmp_path: Path) -> None:
    base = save_base(tmp_path / "base", llama(), LLAMA)
    integers = whole("lm_head.weight", np.ones((VOCABULARY, HIDDEN), np.int32))
    with pytest.raises(NotMergeable, match=r"lm_head\.weight is F32 in the base and I32"):
        plan_of(base, save_adapter(tmp_path / "a", integers))


def test_a_coefficient_beyond_fp32_is_refused(base: Path, tmp_path: Path) -> None:
    with pytest.raises(NotMergeable, match="is beyond fp32"):
        plan_of(base, source(save_adapter(tmp_path / "a", qs()), weight=1e39))


def test_weights_and_options_that_make_no_sense_are_refused(base: Path, tmp_path: Path) -> None:
    with pytest.raises(InvalidOption, match="the weight of a is nan"):
        source(save_adapter(tmp_path / "a", qs()), weight=float("nan"))
    with pytest.raises(InvalidOption, match="dtype 'int8' is unknown"):
        Options(dtype="int8")
    with pytest.raises(InvalidOption, match="no adapter was given"):
        plan_of(base)


def test_factors_that_fp32_does_not_hold_are_refused(base: Path, tmp_path: Path) -> None:
    wide = save_adapter(tmp_path / "a", pair(Q0, HIDDEN, HIDDEN, dtype=np.float64))
    with pytest.raises(NotMergeable, match=rf"{Q0}\.lora_A is stored as F64"):
        plan_of(base, wide)
    with_bias = save_base(
        tmp_path / "biased", llama() | {f"{Q0}.bias": random(1, HIDDEN)}, {**LLAMA}
    )
    tensors = qs() | whole(f"{Q0}.lora_B.bias", np.ones(HIDDEN))
    biased = save_adapter(tmp_path / "b", tensors, lora_bias=True)
    with pytest.raises(NotMergeable, match=rf"{Q0}\.lora_B\.bias is stored as F64"):
        plan_of(with_bias, biased)


def test_a_base_that_holds_a_tensor_under_two_spellings_is_refused(tmp_path: Path) -> None:
    arrays = {name: a for name, a in bert("bert.").items() if "pooler" not in name}
    arrays["embeddings.LayerNorm.weight"] = random(1, HIDDEN)
    config = {**BERT, "architectures": ["BertForMaskedLM"]}
    base = save_base(tmp_path / "base", arrays, config)
    pooler = whole("pooler.dense.weight", random(2, HIDDEN, HIDDEN))
    pooler |= whole("pooler.dense.bias", random(3, HIDDEN))
    adapter = save_adapter(tmp_path / "a", pooler, task_type="FEATURE_EXTRACTION")
    says = r"would both be called embeddings\.LayerNorm\.weight"
    with pytest.raises(NotMergeable, match=says):
        plan_of(base, adapter)
