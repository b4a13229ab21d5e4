"""Adapters that change one of two tied weights: apart while attached, and one weight again."""

from __future__ import annotations

import copy
import random
import warnings
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch")
pytest.importorskip("peft")

import peft
import torch
import transformers
from living import BERT, LLAMA, LORA, adapter_of, bits, output, randomise

from adapterhub import api
from adapterhub.errors import AdapterHubError, NotMergeable, NotSupported
from adapterhub.registry import Registry
from adapterhub.runtime import changing

EMBED, HEAD = "model.embed_tokens.weight", "lm_head.weight"
FIELDS: dict[str, dict[str, Any]] = {
    "embed": {"target_modules": ["embed_tokens", "q_proj"]},
    "head": {"target_modules": ["lm_head", "v_proj"]},
    "both": {"target_modules": ["lm_head", "embed_tokens"]},
    "rows": {"target_modules": ["q_proj"], "trainable_token_indices": [3, 9]},
    "other": {"target_modules": ["v_proj"]},
}


class Tied:
    """A llama whose head is its embedding, and adapters by the names above."""

    def __init__(self, root: Path, registry: Registry) -> None:
        self.root, self.registry = root, registry
        fields = {**LLAMA, "tie_word_embeddings": True}
        made = transformers.LlamaForCausalLM(transformers.LlamaConfig(**fields)).eval()
        randomise(made, 0, every=True)
        made.save_pretrained(root / "base")
        self.model = type(made).from_pretrained(root / "base").eval()
        self.bare = bits(self.model)
        self.answers = {
            name: adapter_of(self.model, "LoraConfig", root / name, number, **LORA, **fields)
            for number, (name, fields) in enumerate(FIELDS.items(), 1)
        }
        self._merged: dict[tuple[tuple[str, float], ...], Any] = {(): self.bare}

    def attach(self, name: str, weight: float = 1.0, **more: Any) -> Any:
        place = self.root / name
        return api.attach(self.model, place, weight=weight, registry=self.registry, **more)

    def merged(self, *parts: tuple[str, float]) -> dict[str, str]:
        if parts not in self._merged:
            out = self.root / f"merged-{len(self._merged)}"
            specs: list[Any] = [(self.root / name, weight) for name, weight in parts]
            api.merge(self.root / "base", specs, out=out, registry=self.registry)
            self._merged[parts] = bits(type(self.model).from_pretrained(out))
        return self._merged[parts]

    @property
    def is_tied(self) -> bool:
        return self.model.lm_head.weight is self.model.model.embed_tokens.weight


@pytest.fixture(scope="module")
def _tied(tmp_path_factory: pytest.TempPathFactory) -> Any:
    with api.open(tmp_path_factory.mktemp("home")) as opened:
        yield Tied(tmp_path_factory.mktemp("tied"), opened)


@pytest.fixture
def tied(_tied: Tied) -> Any:
    weight = _tied.model.lm_head.weight
    yield _tied
    assert bits(_tied.model) == _tied.bare
    assert _tied.is_tied and _tied.model.lm_head.weight is weight


@pytest.mark.parametrize("name", FIELDS)
@pytest.mark.parametrize("restore", ["memory", "base"])
def test_attached_it_computes_what_peft_computes(name: str, restore: str, tied: Tied) -> None:
    with tied.attach(name, restore=restore) as attached:
        assert torch.allclose(output(tied.model), tied.answers[name], atol=1e-5)
        assert bits(tied.model) == tied.merged((name, 1.0))
        assert tied.is_tied is (name in ("rows", "other"))
        if name == "embed" and restore == "base":
            assert attached.memory == tied.model.lm_head.weight.nbytes
        with pytest.raises(NotSupported, match="save_pretrained"):
            tied.model.save_pretrained("nowhere")


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(8))
def test_any_sequence_equals_the_merge_of_what_is_attached(seed: int, tied: Tied) -> None:
    dice = random.Random(seed)
    on: list[tuple[Any, str, float]] = []
    for _ in range(14):
        free = [name for name in FIELDS if name not in [n for _, n, _ in on]]
        name = dice.choice(free)
        weight = 1.0 if name == "rows" else dice.choice([1.0, 0.5])
        verb, held = dice.choice(["attach", "detach", "switch"]), bits(tied.model)
        try:
            if verb == "attach":
                on.append((tied.attach(name, weight), name, weight))
            elif on and verb == "detach":
                on.pop(dice.randrange(len(on)))[0].detach()
            elif on:
                place = dice.randrange(len(on))
                on[place][0].switch(tied.root / name, weight)
                on[place] = (on[place][0], name, weight)
        except NotMergeable as error:  # rows, beside factors for the same embedding
            assert "rows for single tokens and another change" in str(error)
            assert bits(tied.model) == held
        assert bits(tied.model) == tied.merged(*((name, w) for _, name, w in on))
    for handle, *_ in on:
        handle.detach()


@pytest.mark.parametrize("first", ["embed", "rows", "both", "other"])
@pytest.mark.parametrize("second", ["head", "rows", "both"])
@pytest.mark.parametrize("fail", [0, 1, 3])
def test_what_fails_half_way_is_undone(
    first: str, second: str, fail: int, tied: Tied, monkeypatch: pytest.MonkeyPatch
) -> None:
    if first == second:
        return
    real, left = changing._change, [fail]

    def failing(*given: Any) -> None:
        left[0] -= 1
        if left[0] < 0:
            left[0] = 100
            raise MemoryError
        real(*given)

    with tied.attach(first) as attached:
        parameters = {name: id(p) for name, p in tied.model.named_parameters()}
        monkeypatch.setattr(changing, "_change", failing)
        with pytest.raises((MemoryError, AdapterHubError)):
            attached.switch(tied.root / second)
            raise MemoryError  # the switch took fewer steps than that
        monkeypatch.setattr(changing, "_change", real)
        if attached.names == (str(tied.root / first),):
            assert bits(tied.model) == tied.merged((first, 1.0))
            assert {name: id(p) for name, p in tied.model.named_parameters()} == parameters
        else:
            assert bits(tied.model) == tied.merged((second, 1.0))


def test_changes_by_others_are_noticed(tied: Tied) -> None:
    attached = tied.attach("head")
    with torch.no_grad():
        tied.model.lm_head.weight.add_(1)
    held = bits(tied.model)
    with pytest.raises(NotSupported, match="1 tensors were changed by others") as caught:
        attached.detach()
    assert caught.value.details == (HEAD,)
    assert bits(tied.model) == held
    attached.detach(discard=True)
    attached = tied.attach("head")
    tied.model.tie_weights()
    with pytest.raises(NotSupported, match="1 tensors were changed by others"):
        attached.detach()
    attached.detach(discard=True)


def test_a_loaded_model_says_that_nothing_is_tied(tied: Tied, tmp_path: Path) -> None:
    model = api.load_model(tied.root / "embed", base=tied.root / "base", registry=tied.registry)
    assert torch.allclose(output(model), tied.answers["embed"], atol=1e-5)
    model.save_pretrained(tmp_path / "saved")
    again = type(model).from_pretrained(tmp_path / "saved").eval()
    assert bits(again) == tied.merged(("embed", 1.0))
    assert again.lm_head.weight is not again.model.embed_tokens.weight


def test_of_t5_what_nobody_reads_is_refused_and_its_head_attaches(
    registry: Registry, tmp_path: Path
) -> None:
    sizes = {"vocab_size": 24, "d_model": 16, "d_kv": 8, "d_ff": 20, "num_layers": 1}
    config = transformers.T5Config(**sizes, num_heads=2, decoder_start_token_id=0)
    model = transformers.T5ForConditionalGeneration(config).eval()
    randomise(model, 0, every=True)
    ids = torch.tensor([[3, 7, 1, 9]])
    model.save_pretrained(tmp_path / "base")
    before = bits(model)
    t5_adapter(model, tmp_path / "shared", "shared")
    with pytest.raises(NotMergeable, match="which the model never reads itself"):
        api.attach(model, tmp_path / "shared", registry=registry)
    assert bits(model) == before
    wrapped = t5_adapter(model, tmp_path / "head", "lm_head", "q")
    with torch.no_grad():
        expected = wrapped(input_ids=ids, decoder_input_ids=ids).logits
        with api.attach(model, tmp_path / "head", registry=registry):
            found = model(input_ids=ids, decoder_input_ids=ids).logits
            assert torch.allclose(found, expected, atol=1e-5)
        with pytest.raises(NotMergeable, match="no config can say that of a T5For") as caught:
            api.load_model(tmp_path / "head", base=tmp_path / "base", registry=registry)
        assert "adapterhub.attach(model, REF)" in caught.value.remedy
    assert bits(model) == before
    assert model.lm_head.weight is model.shared.weight


def t5_adapter(model: Any, path: Path, *modules: str) -> Any:
    config = peft.LoraConfig(target_modules=list(modules), task_type="SEQ_2_SEQ_LM", **LORA)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        wrapped = peft.get_peft_model(copy.deepcopy(model), config).eval()
        randomise(wrapped, 3)
        wrapped.save_pretrained(path)
    return wrapped


def test_a_bias_may_hang_on_a_weight_that_is_taken_apart(
    registry: Registry, tmp_path: Path
) -> None:
    """GLoRA: b + b ⊙ D + E + W·C, beside BERT's head, whose W is the embedding's."""
    model = transformers.BertForMaskedLM(transformers.BertConfig(**BERT)).eval()
    randomise(model, 0, every=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        config = peft.GloraConfig(target_modules=["decoder", "query"], r=4)
        wrapped = peft.get_peft_model(copy.deepcopy(model), config).eval()
        randomise(wrapped, 3)
        wrapped.save_pretrained(tmp_path / "a")
    before = bits(model)
    with api.attach(model, tmp_path / "a", registry=registry):
        assert torch.allclose(output(model), output(wrapped), atol=1e-5)
    assert bits(model) == before
    assert model.cls.predictions.decoder.weight is model.bert.embeddings.word_embeddings.weight
