"""Is the model in memory the one that the adapter is for? Its base, its vocabulary, its head."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch")
pytest.importorskip("peft")
sys.path.append(str(Path(__file__).parents[1] / "merging"))

import peft
import torch
import transformers
from living import BERT, IDS, LLAMA, LORA, adapter_of, bits, model_of, output, randomise

from adapterhub import api
from adapterhub.errors import BaseMismatch, NotMergeable, NotSupported
from adapterhub.registry import Registry, origin

QV = {**LORA, "target_modules": ["q_proj", "v_proj"]}


def saved(path: Path, kind: str = "llama", **more: Any) -> Any:
    model_of(kind, **more).save_pretrained(path)
    return loaded(path)


def loaded(path: Path, **more: Any) -> Any:
    return transformers.LlamaForCausalLM.from_pretrained(path, **more).eval()


# --- the recorded base ------------------------------------------------------------------------


@pytest.fixture
def other(registry: Registry, tmp_path: Path) -> Any:
    """A model of the same shapes; `a` in the registry records another."""
    model = saved(tmp_path / "base")
    adapter_of(model, "LoraConfig", tmp_path / "a", **QV)
    registry.add(tmp_path / "a", name="a", base=tmp_path / "base")
    return saved(tmp_path / "other", seed=5)


def test_the_recorded_base_is_taken(other: Any, registry: Registry, tmp_path: Path) -> None:
    model = loaded(tmp_path / "base")
    with api.attach(model, "a", registry=registry):
        after = bits(model)
    elsewhere = loaded(tmp_path / "base", dtype="bfloat16")
    with api.attach(elsewhere, "a", registry=registry):
        assert bits(elsewhere) != after


def test_a_model_from_another_base_than_the_recorded_one_is_refused(
    other: Any, registry: Registry, tmp_path: Path
) -> None:
    before = bits(other)
    with pytest.raises(BaseMismatch, match=r"a@sha256.* records a base of weights_root") as caught:
        api.attach(other, "a", registry=registry)
    assert str(tmp_path / "other") in caught.value.message
    assert "force_base=True" in caught.value.remedy
    with api.attach(other, "a", registry=registry, force_base=True) as attached:
        assert bits(other) != before
        attached.switch("a", 0.5)
    assert bits(other) == before


def test_switch_compares_as_attach_does(other: Any, registry: Registry, tmp_path: Path) -> None:
    adapter_of(other, "LoraConfig", tmp_path / "b", 2, **QV)
    with api.attach(other, tmp_path / "b", registry=registry) as attached:
        held = bits(other)
        with pytest.raises(BaseMismatch, match="records a base"):
            attached.switch("a")
        assert bits(other) == held


def test_base_says_where_a_model_comes_from(other: Any, registry: Registry, tmp_path: Path) -> None:
    other.name_or_path = ""  # as that of a model which was made, not loaded
    api.attach(other, "a", registry=registry).detach()
    with pytest.raises(BaseMismatch, match="records a base"):
        api.attach(other, "a", base=tmp_path / "other", registry=registry)


def test_a_large_model_is_not_hashed_unasked(
    other: Any, registry: Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(origin, "MOST_BYTES", 1000)
    api.attach(other, "a", registry=registry).detach()
    weights = tmp_path / "other" / "model.safetensors"
    registry.cache.put(weights, *_hashed(weights))
    with pytest.raises(BaseMismatch, match="records a base"):
        api.attach(other, "a", registry=registry)


def _hashed(path: Path) -> tuple[Any, Any, int]:
    from adapterhub.base import _fingerprint, open_base

    return _fingerprint(path), open_base(path.parent).digests(), 1 << 62


@pytest.mark.parametrize("commit", ["1" * 40, "2" * 40])
def test_a_snapshot_of_the_hub_counts_where_it_is_the_very_commit(
    commit: str, other: Any, registry: Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    snapshot = tmp_path / "models--some--body" / "snapshots" / ("1" * 40)
    snapshot.parent.mkdir(parents=True)
    (tmp_path / "other").rename(snapshot)
    monkeypatch.setattr(origin.hubcache, "cached", {"some/body": snapshot}.get)
    other.name_or_path, other.config._commit_hash = "some/body", commit
    if snapshot.name == commit:
        with pytest.raises(BaseMismatch, match="records a base"):
            api.attach(other, "a", registry=registry)
    else:
        api.attach(other, "a", registry=registry).detach()


# --- the vocabulary ---------------------------------------------------------------------------

RESIZED: dict[str, tuple[int, bool, dict[str, Any]]] = {
    "more": (27, False, QV),
    "fewer": (21, False, QV),
    "tied": (27, True, QV),
    "lora": (27, False, {**LORA, "target_modules": ["q_proj", "embed_tokens", "lm_head"]}),
    "rows": (27, True, {**QV, "trainable_token_indices": [3, 24, 26]}),
}


@pytest.mark.parametrize("name", RESIZED)
def test_a_model_that_was_resized_takes_an_adapter_of_its_size(
    name: str, registry: Registry, tmp_path: Path
) -> None:
    tokens, tied, fields = RESIZED[name]
    model = _tied() if tied else model_of("llama")
    model.save_pretrained(tmp_path / "base")
    expected = _trained(model, tokens, fields, tmp_path / "a")
    live = loaded(tmp_path / "base")
    before = bits(live)
    with pytest.raises(BaseMismatch, match="does not fit this LlamaForCausalLM") as caught:
        api.attach(live, tmp_path / "a", registry=registry)
    assert f"model.resize_token_embeddings({tokens})" in caught.value.remedy
    assert bits(live) == before
    live.resize_token_embeddings(tokens, mean_resizing=False)
    before = bits(live)
    with api.attach(live, tmp_path / "a", registry=registry):
        assert torch.allclose(output(live), expected, atol=1e-5)
        if tied:
            assert live.lm_head.weight is live.model.embed_tokens.weight
    assert bits(live) == before
    ready = api.load_model(tmp_path / "a", base=tmp_path / "base", registry=registry)
    assert torch.allclose(output(ready), expected, atol=1e-5)
    assert ready.config.vocab_size == tokens


def test_rows_that_nobody_brings_are_refused(registry: Registry, tmp_path: Path) -> None:
    model = model_of("llama")
    model.save_pretrained(tmp_path / "base")
    fields = {**QV, "modules_to_save": ["embed_tokens"]}
    model.resize_token_embeddings(27, mean_resizing=False)
    wrapped = peft.get_peft_model(model, peft.LoraConfig(**fields))
    wrapped.save_pretrained(tmp_path / "a", save_embedding_layers=False)
    with pytest.raises(BaseMismatch, match="does not bring all that has a row") as caught:
        api.load_model(tmp_path / "a", base=tmp_path / "base", registry=registry)
    assert caught.value.details == ("lm_head.weight",)


def _tied() -> Any:
    fields = {**LLAMA, "tie_word_embeddings": True}
    model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**fields)).eval()
    randomise(model, 0, every=True)
    return model


def _trained(model: Any, tokens: int, fields: dict[str, Any], path: Path) -> Any:
    model.resize_token_embeddings(tokens, mean_resizing=False)
    wrapped = peft.get_peft_model(model, peft.LoraConfig(**fields)).eval()
    randomise(wrapped, 3)
    wrapped.save_pretrained(path, save_embedding_layers=True)
    return output(wrapped)


# --- the head ---------------------------------------------------------------------------------


def test_a_head_may_be_left_out(registry: Registry, tmp_path: Path) -> None:
    config = transformers.BertConfig(**BERT, num_labels=3)
    trained = transformers.BertForTokenClassification(config).eval()
    randomise(trained, 1, every=True)
    wrapped = peft.get_peft_model(
        trained, peft.LoraConfig(task_type="TOKEN_CLS", target_modules=["query"], **LORA)
    ).eval()
    randomise(wrapped, 2)
    wrapped.save_pretrained(tmp_path / "a")
    bare = transformers.BertModel(config, add_pooling_layer=False).eval()
    with wrapped.disable_adapter():
        bare.load_state_dict(_without_adapters(trained.bert))
    before = bits(bare)
    with pytest.raises(BaseMismatch, match="2 mismatches") as caught:
        api.attach(bare, tmp_path / "a", registry=registry)
    assert "with_head=False" in caught.value.remedy
    ids = torch.tensor(IDS)
    with (
        torch.no_grad(),
        api.attach(bare, tmp_path / "a", registry=registry, with_head=False) as on,
    ):
        expected = wrapped.base_model.model.bert(ids).last_hidden_state
        assert torch.allclose(bare(ids).last_hidden_state, expected, atol=1e-5)
        left = [fate.tensor for fate in on.fates if fate.fate == "unused: with_head=False"]
        assert sorted(left) == ["classifier.replace:bias", "classifier.replace:weight"]
        on.switch(tmp_path / "a", 0.5)
    assert bits(bare) == before


def _without_adapters(model: Any) -> dict[str, Any]:
    return {
        name.replace(".base_layer.", "."): tensor
        for name, tensor in model.state_dict().items()
        if "lora_" not in name
    }


# --- a base that the initialisation changed ---------------------------------------------------


def test_pissa_goes_onto_the_base_that_it_changed(registry: Registry, tmp_path: Path) -> None:
    model = model_of("llama")
    wrapped = peft.get_peft_model(model, peft.LoraConfig(**QV, init_lora_weights="pissa")).eval()
    randomise(wrapped, 2)
    wrapped.save_pretrained(tmp_path / "a")
    expected = output(wrapped)
    changed = model_of("llama")
    changed.load_state_dict(_without_adapters(wrapped.base_model.model))
    changed.save_pretrained(tmp_path / "changed")
    with pytest.raises(NotMergeable, match="init_lora_weights is 'pissa'"):
        api.attach(changed, tmp_path / "a", registry=registry)
    with api.attach(changed, tmp_path / "a", registry=registry, base_is_initialised=True):
        assert torch.allclose(output(changed), expected, atol=1e-5)
    live = api.load_model(
        tmp_path / "a", base=tmp_path / "changed", registry=registry, base_is_initialised=True
    )
    assert torch.allclose(output(live), expected, atol=1e-5)


def test_the_head_of_adapterhub_may_be_left_out(registry: Registry, tmp_path: Path) -> None:
    from safetensors.torch import save_file

    config = transformers.BertConfig(**BERT)
    model = transformers.BertModel(config).eval()
    randomise(model, 1, every=True)
    golden = _bottleneck(tmp_path / "a")
    plain = model(torch.tensor(IDS)).last_hidden_state
    with api.attach(model, golden, registry=registry):
        expected = model(torch.tensor(IDS)).last_hidden_state
    assert not torch.allclose(plain, expected, atol=1e-3)
    save_file({"heads.md.1.weight": torch.ones(2, 16)}, golden / "model_head.safetensors")
    head = '{"config": {"head_type": "classification", "num_labels": 2}, "name": "md"}'
    (golden / "head_config.json").write_text(head)
    with pytest.raises(NotSupported, match="brings a head of AdapterHub's own") as caught:
        api.attach(model, golden, registry=registry)
    assert "with_head=False" in caught.value.remedy
    with api.attach(model, golden, registry=registry, with_head=False) as attached:
        assert torch.equal(model(torch.tensor(IDS)).last_hidden_state, expected)
        fates = {fate.tensor: fate.fate for fate in attached.fates}
        assert fates["heads.1.replace:weight"] == "unused: with_head=False"
        assert len(fates) == 9
        assert set(fates.values()) == {"runs beside the weights", "unused: with_head=False"}


def _bottleneck(path: Path) -> Path:
    """Of AdapterHub, on both layers of BERT, as Pfeiffer has it."""
    import json

    from safetensors.torch import save_file

    inner = {"mh_adapter": False, "output_adapter": True, "reduction_factor": 4}
    inner |= {"non_linearity": "relu", "original_ln_after": True, "original_ln_before": True}
    inner |= {"ln_after": False, "ln_before": False, "is_parallel": False, "scaling": 1.0}
    outer = {"config": inner, "hidden_size": 16, "model_class": "BertAdapterModel", "name": "md"}
    outer |= {"model_type": "bert", "model_name": "owner/bert", "version": "adapters.1.3.0"}
    path.mkdir()
    (path / "adapter_config.json").write_text(json.dumps(outer))
    generator = torch.Generator().manual_seed(4)
    shapes = {"adapter_down.0.weight": (4, 16), "adapter_down.0.bias": (4,)}
    shapes |= {"adapter_up.weight": (16, 4), "adapter_up.bias": (16,)}
    tensors = {
        f"bert.encoder.layer.{layer}.output.adapters.md.{name}": torch.randn(
            shape, generator=generator
        )
        for layer in (0, 1)
        for name, shape in shapes.items()
    }
    save_file(tensors, path / "adapter.safetensors")
    return path
