from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from adapterhub.adapter import Adapter
from adapterhub.base import Base, open_base
from adapterhub.errors import BaseMismatch
from adapterhub.methods import LowRank, Replacement
from adapterhub.registry import fit
from adapterhub.registry.fit import Naming
from adapterhub.tensorfile import ArrayTensor, write_file

Shapes = dict[str, tuple[int, ...]]


def base(path: Path, model_type: str, name: str | None, tensors: Shapes, **config: Any) -> Base:
    path.mkdir()
    said = {"model_type": model_type, **({"architectures": [name]} if name else {}), **config}
    (path / "config.json").write_text(json.dumps(said))
    arrays = {n: ArrayTensor(np.zeros(shape, np.float32)) for n, shape in tensors.items()}
    write_file(path / "model.safetensors", arrays)
    return open_base(path)


def tensor(*shape: int) -> ArrayTensor:
    return ArrayTensor(np.zeros(shape, np.float32))


def adapter(modules: dict[str, dict[str, ArrayTensor]], task: str | None = None) -> Adapter:
    return Adapter("lora", "peft", {"r": 2, "peft_type": "LORA"}, modules, task=task)


QUERY = "encoder.layer.0.attention.self.query"
BERT: Shapes = {f"{QUERY}.weight": (8, 8), f"{QUERY}.bias": (8,), "pooler.dense.weight": (8, 8)}


def prefixed(prefix: str, tensors: Shapes) -> Shapes:
    return {f"{prefix}{name}": shape for name, shape in tensors.items()}


@pytest.mark.parametrize("module", [QUERY, f"bert.{QUERY}"])
@pytest.mark.parametrize("prefix", ["", "bert."])
@pytest.mark.parametrize("named", ["BertModel", "BertForMaskedLM", None])
def test_bare_and_prefixed_names_meet_both_ways(
    tmp_path: Path, module: str, prefix: str, named: str | None
) -> None:
    naming = Naming(base(tmp_path / "b", "bert", named, prefixed(prefix, BERT)))
    assert naming.stored(module) == f"{prefix}{QUERY}"
    assert naming.kind(module) == "Linear"


@pytest.mark.parametrize(
    ("model_type", "stored", "module"),
    [
        ("vit", "encoder.layer.3.attention.attention.query", "vit.layers.3.attention.q_proj"),
        ("vit", "vit.encoder.layer.0.intermediate.dense", "vit.layers.0.mlp.fc1"),
        ("vit", "vit.encoder.layer.0.output.dense", "layers.0.mlp.fc2"),
        ("gpt_neox", "embed_out", "lm_head"),
        ("llama", "model.layers.1.mlp.up_proj", "transformer.layers.1.mlp.up_proj"),
        ("llama", "layers.1.mlp.up_proj", "model.layers.1.mlp.up_proj"),
        ("t5", "encoder.block.0.layer.0.SelfAttention.q", None),
        ("t5", "encoder.block.0.layer.0.SelfAttention.q", "transformer."),
        ("distilbert", "transformer.layer.0.ffn.lin1", "distilbert."),
        ("opt", "decoder.layers.0.fc1", "model."),
    ],
)
def test_names_in_memory_lead_to_names_in_the_files(
    tmp_path: Path, model_type: str, stored: str, module: str | None
) -> None:
    if module is None or module.endswith("."):
        module = f"{module or ''}{stored}"
    naming = Naming(base(tmp_path / "b", model_type, None, {f"{stored}.weight": (4, 4)}))
    assert naming.stored(module) == stored


def test_a_missing_module_keeps_a_name_that_helps(tmp_path: Path) -> None:
    naming = Naming(base(tmp_path / "b", "bert", "BertModel", BERT))
    assert naming.stored("bert.encoder.layer.7.output.dense") == "encoder.layer.7.output.dense"
    assert naming.stored("classifier") == "classifier"


def test_what_a_new_class_writes(tmp_path: Path) -> None:
    bare = base(tmp_path / "b", "bert", "BertModel", {**BERT, "embeddings.position_ids": (1, 4)})
    assert bare.architecture is not None
    naming = Naming(bare, bare.architecture.class_named("BertForTokenClassification"))
    assert naming.written(f"{QUERY}.weight") == f"bert.{QUERY}.weight"
    assert naming.written("pooler.dense.weight") is None
    assert naming.written("embeddings.position_ids") is None
    assert Naming(bare).written("embeddings.position_ids") == "embeddings.position_ids"


@pytest.mark.parametrize(
    ("stored", "written"),
    [
        ("transformer.h.0.attn.c_proj.weight", "transformer.h.0.attn.c_proj.weight"),
        ("transformer.h.0.attn.bias", None),
        ("transformer.h.0.attn.masked_bias", None),
        ("transformer.h.0.attn.a_new_gate.weight", "transformer.h.0.attn.a_new_gate.weight"),
        ("lm_head.weight", None),
        ("some_head.weight", None),
    ],
)
def test_what_the_catalogue_does_not_know_stays_unless_it_is_a_head(
    tmp_path: Path, stored: str, written: str | None
) -> None:
    """A tensor too many makes transformers speak up; one too few makes it guess."""
    tensors = {"transformer.h.0.attn.c_proj.weight": (8, 8), stored: (8, 8)}
    gpt2 = base(tmp_path / "b", "gpt2", "GPT2LMHeadModel", tensors)
    assert gpt2.architecture is not None
    naming = Naming(gpt2, gpt2.architecture.class_named("GPT2ForTokenClassification"))
    assert naming.written(stored) == written


def test_a_head_is_written_without_the_prefix(tmp_path: Path) -> None:
    tensors = {**prefixed("bert.", BERT), "classifier.weight": (2, 8), "cls.predictions.bias": (9,)}
    headed = base(tmp_path / "b", "bert", "BertForSequenceClassification", tensors)
    assert headed.architecture is not None
    bare = Naming(headed, headed.architecture.class_named("BertModel"))
    assert bare.written(f"bert.{QUERY}.bias") == f"{QUERY}.bias"
    assert bare.written("classifier.weight") is None
    token = Naming(headed, headed.architecture.class_named("BertForTokenClassification"))
    assert token.written("classifier.weight") == "classifier.weight"


def low_rank(module: str, a: Sequence[int], b: Sequence[int], layout: Any = "linear") -> LowRank:
    return LowRank(module, tensor(*a), tensor(*b), 1.0, layout, ("lora_A", "lora_B"))


@pytest.mark.parametrize(
    ("a", "b", "layout", "shape"),
    [
        ((2, 5), (7, 2), "linear", (7, 5)),
        ((2, 3, 4, 4), (7, 2, 1, 1), "linear", (7, 3, 4, 4)),
        ((2, 3, 4), (7, 2, 1), "linear", (7, 3, 4)),
        ((2, 10), (7, 2), "embedding", (10, 7)),
        ((2, 3, 4, 4), (7, 2, 3, 3), "linear", ()),
    ],
)
def test_the_shape_of_a_delta(
    tmp_path: Path, a: Sequence[int], b: Sequence[int], layout: Any, shape: tuple[int, ...]
) -> None:
    naming = Naming(base(tmp_path / "b", "bert", "BertModel", BERT))
    assert fit.delta_shape(naming, low_rank("x", a, b, layout)) == shape


@pytest.mark.parametrize("prefix", ["", "transformer."])
def test_conv1d_is_stored_transposed(tmp_path: Path, prefix: str) -> None:
    tensors = prefixed(prefix, {"h.0.attn.c_attn.weight": (8, 24), "wte.weight": (10, 8)})
    naming = Naming(base(tmp_path / "b", "gpt2", "GPT2LMHeadModel", tensors))
    part = low_rank("transformer.h.0.attn.c_attn", (2, 8), (24, 2))
    assert naming.transposed(part)
    assert fit.delta_shape(naming, part) == (8, 24)
    assert fit.mismatch(naming, part) == ""


def replacement(module: str, *shape: int) -> Replacement:
    return Replacement(module, "weight", tensor(*shape), "replace:weight")


def test_a_labelled_head_may_change_its_rows_but_not_its_width(tmp_path: Path) -> None:
    tensors = {**prefixed("bert.", BERT), "classifier.weight": (2, 8)}
    naming = Naming(base(tmp_path / "b", "bert", "BertForSequenceClassification", tensors))
    assert fit.mismatch(naming, replacement("classifier", 5, 8)) == ""
    wide = fit.mismatch(naming, replacement("classifier", 5, 9))
    assert wide == "classifier.weight: the adapter has shape [5, 9], the base [2, 8]"
    scalar = fit.mismatch(naming, replacement("classifier"))
    assert "the adapter has shape []" in scalar
    pooled = fit.mismatch(naming, replacement("bert.pooler.dense", 5, 8))
    assert "the adapter has shape [5, 8], the base [8, 8]" in pooled


def test_an_lm_head_may_not_change_its_rows(tmp_path: Path) -> None:
    tensors: Shapes = {"model.norm.weight": (8,), "lm_head.weight": (10, 8)}
    naming = Naming(base(tmp_path / "b", "llama", "LlamaForCausalLM", tensors))
    assert "shape [12, 8]" in fit.mismatch(naming, replacement("lm_head", 12, 8))


def test_check_lists_modules_and_heads_together(tmp_path: Path) -> None:
    bare = base(tmp_path / "b", "bert", "BertModel", BERT)
    modules = {
        f"bert.{QUERY}": {"lora_A": tensor(2, 9), "lora_B": tensor(8, 2)},
        "bert.nowhere": {"lora_A": tensor(2, 8), "lora_B": tensor(8, 2)},
        "score": {"replace:weight": tensor(3, 8)},
    }
    with pytest.raises(BaseMismatch, match=r"runs/ner does not fit the base .*: 3 mismatches") as e:
        fit.check(bare, adapter(modules, "TOKEN_CLS"), name="runs/ner")
    assert e.value.details == (
        f"bert.{QUERY}: the adapter has factors of shape [8, 9], the base a weight of [8, 8]",
        "bert.nowhere.weight: the base has no such tensor",
        "score.weight: neither the base nor BertForTokenClassification has it",
    )


def test_check_accepts_what_fits(tmp_path: Path) -> None:
    bare = base(tmp_path / "b", "bert", "BertModel", BERT)
    modules = {
        f"bert.{QUERY}": {"lora_A": tensor(2, 8), "lora_B": tensor(8, 2)},
        "classifier": {"replace:weight": tensor(3, 8), "replace:bias": tensor(3)},
    }
    fit.check(bare, adapter(modules, "TOKEN_CLS"), name="runs/ner")
    parts = [(adapter(modules, "TOKEN_CLS"), (replacement("classifier", 3, 8),))]
    target = fit.target_class(bare, parts)
    assert target is not None and target.name == "BertForTokenClassification"


def test_packed_weights_of_a_quantised_base_are_called_what_they_are(tmp_path: Path) -> None:
    packed = {f"{QUERY}.weight": (32, 1)}
    found = base(tmp_path / "b", "bert", "BertModel", packed, quantization_config={"bits": 4})
    pair = {"lora_A": tensor(2, 8), "lora_B": tensor(8, 2)}
    with pytest.raises(BaseMismatch) as caught:
        fit.check(found, adapter({QUERY: pair}), name="it")
    assert caught.value.remedy.startswith("this base is quantised: give the full-precision one")


def test_a_bias_that_its_layer_has_not_is_named_once(tmp_path: Path) -> None:
    found = base(tmp_path / "b", "bert", "BertModel", {f"{QUERY}.weight": (8, 8)})
    biases = Adapter("bitfit", "native", {}, {QUERY: {"replace:bias": tensor(8)}})
    with pytest.raises(BaseMismatch, match="1 mismatch") as caught:
        fit.check(found, biases, name="it")
    assert caught.value.details[0].endswith("gets one in memory only (ah.attach)")


def test_one_mismatch_is_said_in_the_singular(tmp_path: Path) -> None:
    bare = base(tmp_path / "b", "bert", "BertModel", BERT)
    modules = {"nowhere": {"lora_A": tensor(2, 8), "lora_B": tensor(8, 2)}}
    with pytest.raises(BaseMismatch) as caught:
        fit.check(bare, adapter(modules), name="it")
    assert caught.value.message == f"it does not fit the base {bare.path}: 1 mismatch"


@pytest.mark.parametrize("module", ["encoder.attn", "bert.encoder.attn"])
@pytest.mark.parametrize("prefix", ["", "bert."])
def test_attention_that_packs_its_projections_is_found(
    tmp_path: Path, module: str, prefix: str
) -> None:
    tensors: Shapes = {
        "encoder.attn.in_proj_weight": (24, 8),
        "encoder.attn.out_proj.weight": (8, 8),
    }
    naming = Naming(base(tmp_path / "b", "bert", "BertModel", prefixed(prefix, tensors)))
    part = low_rank(module, (2, 8), (24, 2))
    assert naming.parameter(part) == f"{prefix}encoder.attn.in_proj_weight"
    assert fit.mismatch(naming, part) == ""
    wrong = fit.mismatch(naming, low_rank(module, (2, 8), (8, 2)))
    assert (
        wrong == f"{module}: the adapter has factors of shape [8, 8], the base a weight of [24, 8]"
    )
