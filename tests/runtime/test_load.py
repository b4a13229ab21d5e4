"""`load_model` against PEFT's own forward pass, and bit for bit against the merged checkpoint."""

from __future__ import annotations

import json
import shutil
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from adapterhub import api
from adapterhub.errors import BaseMismatch, NotFound, NotMergeable
from adapterhub.registry import Registry

torch = pytest.importorskip("torch")
peft = pytest.importorskip("peft")
transformers = pytest.importorskip("transformers")

SMALL = {"vocab_size": 24, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
BERT = {**SMALL, "intermediate_size": 20, "max_position_embeddings": 16}
LLAMA = {**BERT, "num_key_value_heads": 1, "tie_word_embeddings": False}
GPT2 = {"vocab_size": 24, "n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 16}
IDS = [[3, 7, 1, 9, 12]]


@dataclass(frozen=True)
class Case:
    """`saved` is the class whose files are the base; an adapter is trained on `trained`."""

    id: str
    task: str
    config: str
    fields: dict[str, Any]
    saved: str
    trained: str
    lora: dict[str, Any]
    labels: tuple[str, ...] = ()
    dtype: str = "float32"


QV = {"target_modules": ["query", "value"]}
LORA_ON_QV = {"target_modules": ["q_proj", "v_proj"]}
CASES = [
    Case(
        "token",
        "TOKEN_CLS",
        "BertConfig",
        BERT,
        "BertModel",
        "BertForTokenClassification",
        {**QV, "bias": "lora_only"},
        ("O", "SRC", "REL", "TGT"),
    ),
    Case(
        "sequence",
        "SEQ_CLS",
        "BertConfig",
        BERT,
        "BertModel",
        "BertForSequenceClassification",
        QV,
        ("no", "yes"),
    ),
    Case("features", "FEATURE_EXTRACTION", "BertConfig", BERT, "BertModel", "BertModel", QV),
    Case(
        "llama",
        "CAUSAL_LM",
        "LlamaConfig",
        LLAMA,
        "LlamaForCausalLM",
        "LlamaForCausalLM",
        {
            "target_modules": ["q_proj", "down_proj"],
            "rank_pattern": {"down_proj": 2},
            "modules_to_save": ["lm_head"],
            "use_rslora": True,
        },
    ),
    Case(
        "llama-bf16",
        "CAUSAL_LM",
        "LlamaConfig",
        LLAMA,
        "LlamaForCausalLM",
        "LlamaForCausalLM",
        LORA_ON_QV,
        dtype="bfloat16",
    ),
    Case(
        "dora-and-tokens",
        "CAUSAL_LM",
        "LlamaConfig",
        LLAMA,
        "LlamaForCausalLM",
        "LlamaForCausalLM",
        {**LORA_ON_QV, "use_dora": True, "trainable_token_indices": [3, 7]},
    ),
    Case(
        "gpt2",
        "CAUSAL_LM",
        "GPT2Config",
        GPT2,
        "GPT2LMHeadModel",
        "GPT2LMHeadModel",
        {"target_modules": ["c_attn", "c_proj"], "fan_in_fan_out": True},
    ),
]


@dataclass(frozen=True)
class Made:
    case: Case
    base: Path
    adapter: Path
    expected: Any  # of PEFT's forward pass


def output(model: Any) -> Any:
    with torch.no_grad():
        result = model(torch.tensor(IDS))
    return result.logits if "logits" in result else result.last_hidden_state


def make(case: Case, place: Path) -> Made:
    torch.manual_seed(0)
    config = getattr(transformers, case.config)(**case.fields)
    base = place / "base"
    model = getattr(transformers, case.saved)(config).to(getattr(torch, case.dtype))
    model.save_pretrained(base)
    options = {"num_labels": len(case.labels)} if case.labels else {}
    trained = getattr(transformers, case.trained).from_pretrained(
        base, dtype=getattr(torch, case.dtype), **options
    )
    wrapped = peft.get_peft_model(
        trained, peft.LoraConfig(r=4, lora_alpha=6, task_type=case.task, **case.lora)
    ).eval()
    for name, parameter in wrapped.named_parameters():
        if parameter.requires_grad:
            generator = torch.Generator().manual_seed(len(name))
            noise = torch.randn(parameter.shape, generator=generator) / 4
            parameter.data = noise.to(parameter.dtype)
    wrapped.save_pretrained(place / "adapter")
    return Made(case, base, place / "adapter", output(wrapped))


@pytest.fixture(scope="module", params=CASES, ids=lambda case: case.id)
def made(request: pytest.FixtureRequest, place: Path) -> Made:
    case: Case = request.param
    folder = place / case.id
    folder.mkdir()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return make(case, folder)


@pytest.fixture
def registry(home: Path) -> Iterator[Registry]:
    with api.open(home) as opened:
        yield opened


def test_it_is_the_class_of_the_task_and_agrees_with_peft(
    made: Made, registry: Registry, said: pytest.LogCaptureFixture, capfd: Any
) -> None:
    registry.add(made.adapter, name="a", base=made.base, labels=made.case.labels)
    model = api.load_model("a", registry=registry)
    assert type(model).__name__ == made.case.trained
    assert not model.training
    found = output(model)
    assert found.dtype == getattr(torch, made.case.dtype)
    tolerance = 1e-5 if made.case.dtype == "float32" else 0.1
    assert torch.allclose(found.float(), made.expected.float(), atol=tolerance)
    if made.case.labels:
        assert model.config.id2label == dict(enumerate(made.case.labels))
        assert model.config.label2id == {n: i for i, n in enumerate(made.case.labels)}
    assert [record.getMessage() for record in said.records] == []
    printed = capfd.readouterr()
    assert (printed.out, printed.err) == ("", "")


def test_it_has_the_bits_of_the_merged_checkpoint(
    made: Made, registry: Registry, tmp_path: Path, said: pytest.LogCaptureFixture
) -> None:
    model = api.load_model(made.adapter, base=made.base, registry=registry)
    api.merge(made.base, [made.adapter], out=tmp_path / "merged", registry=registry)
    merged = type(model).from_pretrained(tmp_path / "merged", dtype=made.case.dtype)
    ours, theirs = model.state_dict(), merged.state_dict()
    assert ours.keys() == theirs.keys()
    for name, tensor in ours.items():
        assert tensor.dtype == theirs[name].dtype, name
        assert torch.equal(tensor, theirs[name]), name
    assert [record.getMessage() for record in said.records] == []


def test_peft_loads_what_path_gives(made: Made, registry: Registry) -> None:
    registry.add(made.adapter, name="a")
    options = {"num_labels": len(made.case.labels)} if made.case.labels else {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = getattr(transformers, made.case.trained).from_pretrained(
            made.base, dtype=getattr(torch, made.case.dtype), **options
        )
        wrapped = peft.PeftModel.from_pretrained(model, registry.path("a")).eval()
    assert torch.equal(output(wrapped), made.expected)


# --- finding the base -------------------------------------------------------------------------


@pytest.fixture(scope="module")
def tagger(place: Path) -> Made:
    folder = place / "alone"
    folder.mkdir()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return make(CASES[0], folder)


def test_a_base_that_is_not_at_hand(tagger: Made, registry: Registry, tmp_path: Path) -> None:
    moved = tmp_path / "base"
    tagger.base.rename(moved)
    try:
        registry.add(tagger.adapter, name="a")
        with pytest.raises(NotFound, match=r"the base of a@sha256.* is not at hand") as caught:
            api.load_model("a", registry=registry)
        assert "adapterhub base add DIR" in caught.value.remedy
        assert api.load_model("a", base=moved, registry=registry) is not None
        registry.add(tagger.adapter, name="a", base=moved)
        assert api.load_model("a", registry=registry) is not None
    finally:
        moved.rename(tagger.base)


def test_another_base_than_the_recorded_one(
    tagger: Made, registry: Registry, tmp_path: Path
) -> None:
    torch.manual_seed(1)
    other = tmp_path / "other"
    transformers.BertModel(transformers.BertConfig(**BERT)).save_pretrained(other)
    registry.add(tagger.adapter, name="a", base=tagger.base)
    with pytest.raises(BaseMismatch, match="is not the base recorded with a@sha256") as caught:
        api.load_model("a", base=other, registry=registry)
    assert "force_base=True" in caught.value.remedy
    assert api.load_model("a", base=other, force_base=True, registry=registry) is not None


def test_a_base_of_another_shape_is_refused_before_it_is_loaded(
    tagger: Made, registry: Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wide = transformers.BertConfig(**BERT | {"hidden_size": 32})
    transformers.BertModel(wide).save_pretrained(tmp_path / "wide")

    def refuse(*_: Any, **__: Any) -> Any:
        raise RuntimeError("a model was loaded")

    monkeypatch.setattr(transformers.AutoModelForTokenClassification, "from_pretrained", refuse)
    with pytest.raises(BaseMismatch, match="does not fit the base") as caught:
        api.load_model(tagger.adapter, base=tmp_path / "wide", registry=registry)
    assert len(caught.value.details) >= 4


def test_labels_without_names_are_numbered(tagger: Made, registry: Registry) -> None:
    model = api.load_model(tagger.adapter, base=tagger.base, registry=registry)
    assert model.config.num_labels == 4
    assert model.config.id2label[3] == "LABEL_3"


def retold(source: Path, target: Path, **fields: Any) -> Path:
    """A copy of an adapter whose config says something else."""
    shutil.copytree(source, target)
    config = json.loads((target / "adapter_config.json").read_text())
    (target / "adapter_config.json").write_text(json.dumps(config | fields))
    return target


def test_without_a_task_a_head_of_several_classes_is_refused(
    tagger: Made, registry: Registry, tmp_path: Path
) -> None:
    adapter = retold(tagger.adapter, tmp_path / "a", task_type=None)
    with pytest.raises(NotMergeable, match=r"fits several classes: .*BertForTokenClassification"):
        api.load_model(adapter, base=tagger.base, registry=registry)


def test_a_head_that_nobody_brings_is_refused(
    tagger: Made, registry: Registry, tmp_path: Path
) -> None:
    """transformers would make a random one and log a warning."""
    adapter = retold(tagger.adapter, tmp_path / "a", task_type="QUESTION_ANS")
    with pytest.raises(BaseMismatch):
        api.load_model(adapter, base=tagger.base, registry=registry)
    plain = tmp_path / "plain"
    model = transformers.BertModel.from_pretrained(tagger.base)
    peft.get_peft_model(model, peft.LoraConfig(r=2, **QV)).save_pretrained(plain)
    adapter = retold(plain, tmp_path / "b", task_type="SEQ_CLS")
    with pytest.raises(BaseMismatch, match="would be random") as caught:
        api.load_model(adapter, base=tagger.base, registry=registry)
    assert "classifier.weight" in caught.value.details


@pytest.mark.parametrize("how", [{"target_modules": ["wte"]}, {"modules_to_save": ["wte"]}])
def test_of_a_tied_weight_one_name_may_change(
    registry: Registry, tmp_path: Path, how: dict[str, Any]
) -> None:
    model = transformers.GPT2LMHeadModel(transformers.GPT2Config(**GPT2)).eval()
    model.save_pretrained(tmp_path / "base")
    options = {"target_modules": ["c_attn"], "fan_in_fan_out": True, **how}
    ids = torch.tensor([[3, 7, 1]])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        wrapped = peft.get_peft_model(model, peft.LoraConfig(r=2, task_type="CAUSAL_LM", **options))
        for parameter in wrapped.parameters():
            if parameter.requires_grad:
                parameter.data += torch.randn_like(parameter) / 4
        wrapped.eval().save_pretrained(tmp_path / "adapter")
        expected = wrapped(ids).logits
    loaded = api.load_model(tmp_path / "adapter", base=tmp_path / "base", registry=registry)
    assert torch.allclose(loaded(ids).logits, expected, atol=1e-5)
    assert loaded.config.tie_word_embeddings is False
    assert loaded.lm_head.weight is not loaded.transformer.wte.weight
