"""Which base is an adapter for? By hand-made signatures, by models of PEFT, and by strangers'."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from patience import ends

from adapterhub import formats
from adapterhub.adapter import Adapter
from adapterhub.errors import AdapterHubError
from adapterhub.known_bases import Facts, Row, Structure, known, named, parsed, structure
from adapterhub.methods import method
from adapterhub.methods.lora_signature import signature as lora_signature
from adapterhub.methods.signature import Signature
from adapterhub.registry import Registry
from adapterhub.registry.identify import Identification, identify

LLAMA_7B = {
    "huggyllama/llama-7b",
    "meta-llama/Llama-2-7b-hf",
    "codellama/CodeLlama-7b-hf",
    "openlm-research/open_llama_7b",
}


def layers(path: str, count: int, *size: int | None) -> dict[str, tuple[Any, Any]]:
    """The same module in each layer, `*` in `path` being its number."""
    return {path.replace("*", str(number)): (size[0], size[1]) for number in range(count)}


def best(found: Identification) -> set[str]:
    return set(found.candidates[0].names) if found.candidates else set()


def attention(count: int, kv: int, width: int = 4096, stem: str = "model.layers") -> Signature:
    modules = layers(f"{stem}.*.self_attn.q_proj", count, width, width)
    return Signature(modules | layers(f"{stem}.*.self_attn.v_proj", count, kv, width))


# --- by hand ----------------------------------------------------------------------------------


def test_siblings_of_equal_shape_are_named_together() -> None:
    found = identify(attention(32, 4096), declared="/content/model")
    (one,) = found.candidates
    assert set(one.names) == LLAMA_7B
    assert (one.sure, one.whole, one.declared) == ("shapes", True, False)
    assert found.declared is not None
    assert (found.declared.means, found.declared.fits) == (None, None)
    assert found.sentence.endswith("32 layers, 4096 wide; the config says '/content/model'")
    assert found.sentence.startswith("fits codellama/CodeLlama-7b-hf, huggyllama/llama-7b, ")


def test_keys_and_values_tell_apart() -> None:
    grouped = best(identify(attention(32, 1024)))
    assert {"mistralai/Mistral-7B-v0.1", "mistralai/Mixtral-8x7B-v0.1"} < grouped
    assert {"meta-llama/Meta-Llama-3-8B", "meta-llama/Llama-3.1-8B"} < grouped
    assert not LLAMA_7B & grouped
    assert best(identify(attention(32, 512))) == {"01-ai/Yi-6B"}


def test_feed_forward_tells_mixtures_apart() -> None:
    told = attention(32, 1024)
    dense = layers("model.layers.*.mlp.up_proj", 32, 14336, 4096)
    assert "mistralai/Mixtral-8x7B-v0.1" not in best(identify(Signature({**told.modules, **dense})))


@pytest.mark.parametrize(
    ("module", "size"),
    [
        ("model.layers.*.mlp.experts.gate_up_proj", (28672, 4096)),
        ("model.layers.*.mlp.experts.gate_up_proj", (4096, 28672)),  # peft 0.18
        ("model.layers.*.mlp.experts.down_proj", (4096, 14336)),
        ("model.layers.*.block_sparse_moe.experts.7.w1", (14336, 4096)),  # transformers 4
    ],
)
def test_experts(module: str, size: tuple[int, int]) -> None:
    found = identify(Signature(layers(module, 32, *size)))
    assert best(found) == {"mistralai/Mixtral-8x7B-v0.1"}
    wrong = Signature(layers(module, 32, size[0], size[1] + 1))
    assert identify(wrong).candidates == ()


def test_a_head_that_is_saved_whole_tells_the_vocabulary() -> None:
    told = Signature(attention(32, 4096).modules, {"lm_head.weight": (32016, 4096)})
    first, second = identify(told).candidates
    assert first.names == ("codellama/CodeLlama-7b-hf",)
    assert set(second.names) == LLAMA_7B - {"codellama/CodeLlama-7b-hf"}
    assert "but for its vocabulary of 32016" in second.why


def test_a_vocabulary_of_another_size_altogether_fits_nothing() -> None:
    told = Signature(attention(32, 4096).modules, {"lm_head.weight": (128256, 4096)})
    found = identify(told, declared="meta-llama/Llama-2-7b-hf")
    assert found.candidates == ()
    assert "a vocabulary of 128256" in found.sentence
    assert found.declared is not None
    assert found.declared.why_not == 'its "lm_head.weight" is not [128256, 4096]'


def test_new_tokens_in_a_trained_embedding() -> None:
    modules = {"bert.embeddings.word_embeddings": (30524, 768)}
    (one,) = identify(Signature(modules)).candidates
    assert one.names == ("google-bert/bert-base-uncased",)
    assert "vocabulary of 30524" in one.why


@pytest.mark.parametrize("stem", ["layers", "model.layers", "base_model.model.layers"])
def test_with_and_without_a_head(stem: str) -> None:
    (one,) = identify(attention(32, 4096, stem=stem)).candidates
    assert set(one.names) == LLAMA_7B
    assert "inside" not in one.why


@pytest.mark.parametrize("stem", ["language_model.model.layers", "model.language_model.layers"])
def test_a_language_model_inside_another_model(stem: str) -> None:
    (one,) = identify(attention(32, 4096, stem=stem)).candidates
    assert set(one.names) == LLAMA_7B
    assert one.why.endswith("inside a larger model, under language_model")


def test_a_prefix_tells_the_architecture() -> None:
    sizes = ("encoder.layer.*.attention.self.query", 12, 768, 768)
    bare = {name.split("/")[0] for name in best(identify(Signature(layers(*sizes))))}
    assert {"google-bert", "FacebookAI"} <= bare
    roberta = best(identify(Signature(layers(f"roberta.{sizes[0]}", *sizes[1:]))))
    assert roberta == {"FacebookAI/roberta-base", "FacebookAI/xlm-roberta-base"}


def test_names_in_files_and_in_memory() -> None:
    old = layers("vit.encoder.layer.*.attention.attention.query", 12, 768, 768)
    new = layers("vit.layers.*.attention.q_proj", 12, 768, 768)
    expected = {"google/vit-base-patch16-224", "google/vit-base-patch32-224-in21k"}
    assert best(identify(Signature(old))) == best(identify(Signature(new))) == expected


def test_a_conv1d_is_told_as_the_method_sees_it() -> None:
    module = "transformer.h.*.attn.c_attn"
    assert best(identify(Signature(layers(module, 12, 2304, 768)))) == {"openai-community/gpt2"}
    assert identify(Signature(layers(module, 12, 768, 2304))).candidates == ()


def test_vectors_tell_one_size() -> None:
    modules = layers("encoder.block.*.layer.0.SelfAttention.k", 24, 1024, None)
    modules |= layers("decoder.block.*.layer.2.DenseReluDense.wo", 24, None, 2816)
    (one,) = identify(Signature(modules)).candidates
    assert one.sure == "sizes"
    assert {"google/mt5-large", "google/flan-t5-large"} <= set(one.names)
    assert "google-t5/t5-large" not in one.names


def test_a_sublayer_that_the_stack_does_not_have() -> None:
    """An encoder of a T5 has no cross-attention, which would be its layer 1."""
    modules = layers("encoder.block.*.layer.1.EncDecAttention.q", 6, 512, 512)
    assert identify(Signature(modules)).candidates == ()


def test_biases_alone() -> None:
    whole = {f"roberta.encoder.layer.{n}.output.dense.bias": (1024,) for n in range(24)}
    (one,) = identify(Signature(whole=whole)).candidates
    assert set(one.names) == {"FacebookAI/roberta-large", "FacebookAI/xlm-roberta-large"}
    assert identify(Signature(whole={**whole, "roberta.encoder.layer.24.x.bias": (1,)})) != one


def test_a_head_of_anybodys_own() -> None:
    told = Signature(attention(32, 4096).modules, {"my_head.weight": (3, 4096)})
    (one,) = identify(told).candidates
    assert set(one.names) == LLAMA_7B
    assert one.why.endswith('which lack "my_head.weight"')


def test_copies_of_a_head_are_no_tensors_of_their_own() -> None:
    whole = {"classifier.modules_to_save.bias": (3,), "classifier.original_module.bias": (3,)}
    modules = layers("bert.encoder.layer.*.attention.self.query", 12, 768, 768)
    assert "lack" not in identify(Signature(modules, whole)).candidates[0].why


# --- prompts ----------------------------------------------------------------------------------


def test_a_prompt_tells_no_more_than_a_width() -> None:
    (one,) = identify(Signature(width=640), declared="google/gemma-3-270m-it").candidates
    assert (one.sure, one.declared) == ("width", True)
    assert {"google/gemma-3-270m", "facebook/esm2_t30_150M_UR50D"} <= set(one.names)


def test_a_long_list_is_cut_and_the_declared_base_told() -> None:
    found = identify(Signature(width=768), declared="gpt2")
    assert " more: 768 wide; the config says 'gpt2', which is openai-community" in found.sentence
    assert found.sentence.endswith(", and fits")


def test_a_prefix_tells_layers_and_keys() -> None:
    found = identify(Signature(width=2048, layers=22, kv_width=256))
    assert best(found) == {"TinyLlama/TinyLlama-1.1B-intermediate-step-1431k-3T"}
    assert found.candidates[0].why == "2048 wide, keys 256 wide"
    assert identify(Signature(width=2048, layers=22, kv_width=255)).candidates == ()


def test_keys_as_peft_counts_them() -> None:
    """Qwen3-0.6B: 8 heads of 128 for keys; PEFT takes 1024 ÷ 16 for the size of a head."""
    for kv_width in (8 * 128, 8 * 64):
        told = Signature(width=1024, layers=28, kv_width=kv_width)
        assert best(identify(told)) == {"Qwen/Qwen3-0.6B-Base"}


# --- layers -----------------------------------------------------------------------------------


def stack(count: int) -> Structure:
    path = parsed("model.layers.0.q_proj")
    assert path is not None
    row = Row((frozenset(range(count)),), ((8, 8),), {"weight": (8, 8)})
    return structure([(path, row)], frozenset({"model"}), Facts(layers=count, width=8))


STACKS = {"sixteen": stack(16), "thirty-two": stack(32), "eight": stack(8)}


def test_a_base_that_is_covered_wholly_comes_first() -> None:
    told = Signature(layers("model.layers.*.q_proj", 16, 8, 8))
    first, second = identify(told, registered=STACKS, known=()).candidates
    assert (first.registered, first.whole, first.why) == (("sixteen",), True, "16 layers, 8 wide")
    assert (second.registered, second.whole) == (("thirty-two",), False)
    assert second.why == "16 of 32 layers, 8 wide"


def test_layers_that_people_chose_tell_nothing() -> None:
    told = Signature(layers("model.layers.*.q_proj", 16, 8, 8))
    (one,) = identify(told, registered=STACKS, known=(), cut=True).candidates
    assert set(one.names) == {"sixteen", "thirty-two"}
    assert one.why == "16 of its layers, 8 wide"


def test_a_layer_beyond_the_last_one() -> None:
    told = Signature({"model.layers.31.q_proj": (8, 8)})
    (one,) = identify(told, registered=STACKS, known=()).candidates
    assert one.names == ("thirty-two",)
    assert one.why == "1 of 32 layers, 8 wide"


def test_layers_of_another_kind_do_not_count() -> None:
    """Every fourth layer of a Qwen3.5 attends to all; the adapter changes all of those."""
    modules = {f"model.layers.{n}.self_attn.k_proj": (1024, 2560) for n in range(3, 32, 4)}
    first, _, third = identify(Signature(modules)).candidates
    assert (first.names, first.why) == (("Qwen/Qwen3.5-4B",), "8 layers, 2560 wide")
    assert (third.names, third.why) == (("Qwen/Qwen3-4B-Base",), "8 of 36 layers, 2560 wide")
    modules |= {"model.layers.4.self_attn.k_proj": (1024, 2560)}
    assert best(identify(Signature(modules))) == {"google/gemma-3-4b-pt"}


# --- nothing ----------------------------------------------------------------------------------


def test_nothing_fits_and_what_was_seen() -> None:
    found = identify(attention(7, 24, 24))
    assert found.candidates == ()
    assert found.sentence == (
        "no base of the catalogue or the registry has 7 layers and a width of 24, as "
        '"model.layers.0.self_attn.q_proj" shows'
    )


def test_an_adapter_that_tells_nothing() -> None:
    found = identify(Signature(), declared="gpt2")
    assert found.candidates == ()
    assert found.sentence.startswith("nothing in it tells about its base; the config says 'gpt2'")


@pytest.mark.parametrize("path", ["model.layers.*.q", ".".join("1" * 50), "x" * 100_000, ""])
def test_hostile_paths(path: str) -> None:
    found = identify(Signature({path: (8, 8)}, {f"{path}.weight": (8,)}))
    assert found.candidates == ()
    assert len(found.sentence) < 1000


def test_many_modules_take_no_long() -> None:
    modules = {f"model.layers.{n}.q.{n}": (n, n) for n in range(20_000)}
    with ends():
        identify(Signature(modules))


def test_the_declared_base_may_be_wrong() -> None:
    modules = layers("bert.encoder.layer.*.attention.self.query", 12, 768, 768)
    found = identify(Signature(modules), declared="google-bert/bert-large-uncased")
    assert found.declared is not None
    assert found.declared.fits is False
    assert found.sentence.endswith(
        "the config says 'google-bert/bert-large-uncased', but its "
        '"bert.encoder.layer.0.attention.self.query" is 1024 × 1024, not 768 × 768'
    )


def test_as_json() -> None:
    document = identify(attention(32, 4096), declared="gpt2").to_dict()
    assert json.loads(json.dumps(document))["declared"]["means"] == "openai-community/gpt2"


# --- registered bases -------------------------------------------------------------------------


def test_a_registered_base_is_a_candidate(registry: Registry, base: Path, adapter: Path) -> None:
    registry.base.add(base, name="mini")
    found = registry.identify(adapter)
    (one,) = found.candidates
    assert (one.registered, one.known, one.declared) == (("mini",), (), False)
    assert one.why == "1 layer"
    assert found.sentence == "fits mini: 1 layer; the config says 'owner/tiny-bert'"


def test_the_name_of_a_registered_base_is_known(
    registry: Registry, base: Path, adapter: Path
) -> None:
    registry.base.add(base, name="owner/tiny-bert")
    assert registry.identify(adapter).candidates[0].declared


def test_a_base_that_is_gone_is_named(registry: Registry, base: Path, adapter: Path) -> None:
    registry.base.add(base, name="mini")
    (base / "config.json").unlink()
    found = registry.identify(adapter)
    assert (found.candidates, found.skipped) == ((), ("mini",))


def test_a_ref_is_identified_too(registry: Registry, base: Path, adapter: Path) -> None:
    registry.add(adapter, name="a", base=base)
    assert best(registry.identify("a")) == {"minibert"}


# --- against PEFT -----------------------------------------------------------------------------


def _bert() -> Any:
    from transformers import BertConfig, BertForSequenceClassification

    config = BertConfig(
        vocab_size=50,
        hidden_size=16,
        num_hidden_layers=3,
        num_attention_heads=2,
        intermediate_size=24,
        max_position_embeddings=12,
        num_labels=5,
    )
    return BertForSequenceClassification(config), {
        "task_type": "SEQ_CLS",
        "target_modules": ["query", "output.dense", "word_embeddings"],
    }


def _gpt2() -> Any:
    from transformers import GPT2Config, GPT2LMHeadModel

    config = GPT2Config(vocab_size=40, n_embd=12, n_layer=2, n_head=2, n_positions=9)
    return GPT2LMHeadModel(config), {"target_modules": ["c_attn", "mlp.c_proj"]}


def _mixtral() -> Any:
    from transformers import MixtralConfig, MixtralForCausalLM

    config = MixtralConfig(
        vocab_size=40,
        hidden_size=12,
        intermediate_size=20,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        num_local_experts=3,
    )
    return MixtralForCausalLM(config), {
        "target_modules": ["q_proj"],
        "target_parameters": ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"],
    }


def _vit() -> Any:
    from transformers import ViTConfig, ViTModel

    config = ViTConfig(
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=24,
        image_size=8,
        patch_size=4,
    )
    return ViTModel(config), {"target_modules": ["q_proj", "projection"]}


@pytest.mark.parametrize("make", [_bert, _gpt2, _mixtral, _vit])
@pytest.mark.filterwarnings("ignore")
def test_what_peft_saves_finds_the_model_that_it_was_trained_on(
    make: Any, registry: Registry, tmp_path: Path
) -> None:
    pytest.importorskip("peft")
    from peft import LoraConfig, get_peft_model

    model, options = make()
    model.save_pretrained(tmp_path / "base")
    wrapped = get_peft_model(model, LoraConfig(r=2, init_lora_weights=False, **options))
    wrapped.save_pretrained(tmp_path / "adapter")
    registry.base.add(tmp_path / "base", name="mine")
    (one,) = registry.identify(tmp_path / "adapter").candidates
    assert (one.names, one.sure, one.whole) == (("mine",), "shapes", True)


# --- by strangers -----------------------------------------------------------------------------


def _signature(path: Path) -> Signature | None:
    """None for what this version does not read."""
    try:
        adapter = formats.read(path, allow_pickle=True).adapter
        return method(adapter.method).implementation.signature(adapter) if adapter else None
    except AdapterHubError:
        return None


@pytest.mark.filterwarnings("ignore")
def test_the_true_base_of_strangers_adapters_is_found(corpus: Path) -> None:
    wrong, right = [], []
    for entry in json.loads((corpus / "adapters" / "INDEX.json").read_text("utf-8")):
        truth = named(entry["base"] or "")
        told = _signature(corpus / "adapters" / entry["slug"])
        if truth is not None and told is not None:
            fits = truth.base.name in best(identify(told))
            (right if fits else wrong).append(entry["slug"])
    assert wrong == []
    assert len(right) >= 10


def test_every_known_base_finds_itself() -> None:
    """A signature of all Linear modules of a base has it in the best candidate."""
    for base in known():
        modules: dict[str, tuple[int | None, int | None]] = {}
        for tail, rows in base.structure.rows.items():
            for row in rows:
                if len(row.sizes) == 1 and len(row.axes) == 1:
                    for number in row.layers:
                        modules[tail.replace("*", str(number))] = row.sizes[0]
        if modules:
            assert base.name in best(identify(Signature(modules))), base.name


def test_lora_signature_of_a_merged_linear() -> None:
    from adapterhub.tensorfile import ArrayTensor

    def tensor(*shape: int) -> ArrayTensor:
        return ArrayTensor(np.ones(shape, np.float32))

    roles = {"lora_A": tensor(16, 64), "lora_B": tensor(128, 8, 1)}
    config = {"r": 8, "lora_alpha": 8, "enable_lora": [True, False, True]}
    adapter = Adapter("lora", "peft", config, {"h.0.query_key_value": roles})
    assert lora_signature(adapter).modules == {"h.0.query_key_value": (None, 64)}
