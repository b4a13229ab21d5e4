"""Tied embeddings, rows of tokens and other numbers of tokens, against PEFT's forward pass."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from building import opened, read_adapter
from peft_models import BART, BERT, DECODER, DISTIL, ELECTRA, GEMMA, GPT2, OPT, T5, Model, same
from test_against_peft import Case, inputs, load, make

from adapterhub import merging as merge
from adapterhub.errors import NotMergeable
from adapterhub.merging import MergeReport, Source

torch = pytest.importorskip("torch")

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning")
TIED = {"tie_word_embeddings": True}


@dataclass(frozen=True)
class Kind:
    """A tied model: its modules that share a weight, and one that shares none."""

    config: str
    fields: dict[str, Any]
    name: str
    embedding: str
    head: str
    other: str


KINDS = {
    "llama": Kind("LlamaConfig", DECODER, "LlamaForCausalLM", "embed_tokens", "lm_head", "q_proj"),
    "gpt2": Kind("GPT2Config", GPT2, "GPT2LMHeadModel", "wte", "lm_head", "c_attn"),
    "bert": Kind("BertConfig", BERT, "BertForMaskedLM", "word_embeddings", "decoder", "query"),
    "opt": Kind("OPTConfig", OPT, "OPTForCausalLM", "embed_tokens", "lm_head", "q_proj"),
    "gemma2": Kind("Gemma2Config", GEMMA, "Gemma2ForCausalLM", "embed_tokens", "lm_head", "q_proj"),
    "t5": Kind("T5Config", T5, "T5ForConditionalGeneration", "shared", "lm_head", "q"),
    "bart": Kind("BartConfig", BART, "BartForConditionalGeneration", "shared", "lm_head", "fc1"),
    "roberta": Kind(
        "RobertaConfig", BERT, "RobertaForMaskedLM", "word_embeddings", "lm_head.decoder", "query"
    ),
    "distilbert": Kind(
        "DistilBertConfig",
        DISTIL,
        "DistilBertForMaskedLM",
        "word_embeddings",
        "vocab_projector",
        "q_lin",
    ),
    "electra": Kind(
        "ElectraConfig",
        ELECTRA,
        "ElectraForMaskedLM",
        "word_embeddings",
        "generator_lm_head",
        "query",
    ),
}
# What is trained, in terms of (E)mbedding and (H)ead: lora, saved, rows of tokens; `+` asks peft
# to keep them tied.
WAYS: dict[str, dict[str, Any]] = {
    "lora E": {"target_modules": ["E"]},
    "lora H": {"target_modules": ["H"]},
    "lora E H": {"target_modules": ["E", "H"]},
    "lora E+": {"target_modules": ["E"], "ensure_weight_tying": True},
    "lora E H+": {"target_modules": ["E", "H"], "ensure_weight_tying": True},
    "lora T": {"target_modules": ["embed_tokens"]},
    "saved E": {"modules_to_save": ["E"]},
    "saved H": {"modules_to_save": ["H"]},
    "saved E H": {"modules_to_save": ["E", "H"]},
    "saved E+": {"modules_to_save": ["E"], "ensure_weight_tying": True},
    "dora H": {"target_modules": ["H"], "use_dora": True},
    "dora E": {"target_modules": ["E"], "use_dora": True},
    "tokens": {"trainable_token_indices": [3, 17]},
    "tokens E": {"trainable_token_indices": {"E": [17, 3]}},
    "tokens H": {"trainable_token_indices": {"H": [3, 17]}},
    "tokens E H": {"trainable_token_indices": {"E": [3, 7], "H": [3, 8]}},
    "tokens E, lora H": {"trainable_token_indices": {"E": [3]}, "target_modules": ["H"]},
    "tokens H, lora E": {"trainable_token_indices": {"H": [3]}, "target_modules": ["E"]},
    "tokens E, saved H": {"trainable_token_indices": {"E": [3]}, "modules_to_save": ["H"]},
}
STAY = [  # where both names of the weight change alike, so that it stays one
    *[("llama", way) for way in ("lora E+", "lora E H+", "saved E+", "tokens", "tokens E")],
    *[(kind, "tokens") for kind in ("gpt2", "opt", "gemma2", "t5", "bart")],
    ("gemma2", "lora E H+"),
    ("gpt2", "lora E H+"),
]
PART = [  # where they do not; peft ties by name, and not what it does not know
    *[("llama", way) for way in ("lora E", "lora H", "lora E H", "saved E", "saved H")],
    *[("llama", way) for way in ("saved E H", "dora H", "dora E", "tokens H", "tokens E H")],
    ("llama", "tokens H, lora E"),
    *[("gpt2", way) for way in ("lora E", "lora H", "saved E", "saved E+")],
    *[("bert", way) for way in ("lora E", "lora H", "lora E H+", "saved H")],
    *[("opt", way) for way in ("lora E", "lora H")],
    *[("gemma2", way) for way in ("lora E", "saved H")],
    *[("bart", way) for way in ("lora H", "lora T", "saved H", "lora E H+")],
    *[("roberta", "lora E"), ("distilbert", "lora H"), ("electra", "lora E")],
]
CASES = [*[(*case, False) for case in STAY], *[(*case, True) for case in PART]]


def model(kind: str, way: str) -> Model:
    found = KINDS[kind]
    names = {"E": found.embedding, "H": found.head}

    def named(value: Any) -> Any:
        if isinstance(value, dict):
            return {names[key]: item for key, item in value.items()}
        return [names.get(item, item) for item in value] if isinstance(value, list) else value

    lora = {key: named(value) for key, value in WAYS[way].items()}
    lora["target_modules"] = [*lora.get("target_modules", ()), found.other]
    return same(f"{kind} {way}", found.config, {**found.fields, **TIED}, found.name, **lora)


def config(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((path / "config.json").read_text())
    return found


def merged(case: Case, out: Path) -> MergeReport:
    adapter = Source("it", read_adapter(case.adapter))
    return merge.run(merge.plan(opened(case.base), [adapter]), out)


def assert_computes_the_same(case: Case, out: Path, caplog: pytest.LogCaptureFixture) -> None:
    loaded = load(case, out, caplog)
    with torch.no_grad():
        given = inputs(loaded)
        got, want = loaded(**given).logits, case.live(**given).logits
    assert want.abs().max() > 0.01
    assert (got - want).abs().max() <= 1e-5 * max(1, want.abs().max() / 10)


@pytest.mark.parametrize(("kind", "way", "untied"), CASES)
def test_what_was_tied_computes_what_peft_computes(
    kind: str, way: str, untied: bool, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    case = make(model(kind, way), tmp_path)
    report = merged(case, tmp_path / "out")
    assert_computes_the_same(case, tmp_path / "out", caplog)
    before, after = config(case.base), config(tmp_path / "out")
    assert after == ({**before, "tie_word_embeddings": False} if untied else before)
    assert any(note.startswith("untied: ") for note in report.notes) == untied
    stored = set(opened(case.base).tensors)
    written = set(opened(tmp_path / "out").tensors)
    assert written > stored if untied else written == stored


# The base's files are those of the bare model, and its config names the class with a head, or not.
BARE = {
    "gpt2 lora E": Model(
        "gpt2-bare",
        "GPT2Config",
        {**GPT2, **TIED},
        "GPT2Model",
        "GPT2LMHeadModel",
        {"target_modules": ["c_attn", "wte"]},
        says="GPT2LMHeadModel",
    ),
    "gpt2 lora H": Model(
        "gpt2-bare",
        "GPT2Config",
        {**GPT2, **TIED},
        "GPT2Model",
        "GPT2LMHeadModel",
        {"target_modules": ["c_attn", "lm_head"]},
        says="GPT2LMHeadModel",
    ),
    "llama saved H": Model(
        "llama-bare",
        "LlamaConfig",
        {**DECODER, **TIED},
        "LlamaModel",
        "LlamaForCausalLM",
        {"target_modules": ["q_proj"], "modules_to_save": ["lm_head"], "task_type": "CAUSAL_LM"},
    ),
    "llama saved E H": Model(
        "llama-bare",
        "LlamaConfig",
        {**DECODER, **TIED},
        "LlamaModel",
        "LlamaForCausalLM",
        {
            "target_modules": ["q_proj"],
            "modules_to_save": ["lm_head", "embed_tokens"],
            "task_type": "CAUSAL_LM",
        },
    ),
}


@pytest.mark.parametrize("bare", BARE.values(), ids=BARE)
def test_a_bare_models_files_are_untied_too(
    bare: Model, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    case = make(bare, tmp_path)
    assert not any("lm_head" in name for name in opened(case.base).tensors)
    report = merged(case, tmp_path / "out")
    assert (report.model_class, config(tmp_path / "out")["architectures"]) == (
        bare.trained,
        [bare.trained],
    )
    assert "lm_head.weight" in opened(tmp_path / "out").tensors
    assert_computes_the_same(case, tmp_path / "out", caplog)


# What PEFT computes in these cases has no place in a checkpoint of this class, or PEFT fails.
REFUSED = {
    ("llama", "tokens E, lora H"): r"another change meet in lm_head\.weight",
    ("llama", "tokens E, saved H"): r"another change meet in lm_head\.weight",
    ("bert", "tokens"): "a bias beside it, which PEFT leaves out",
    ("t5", "lora H"): r"shared\.weight and lm_head\.weight share one weight.* no config can say",
    ("t5", "saved H"): r"shared\.weight and lm_head\.weight share one weight.* no config can say",
    ("t5", "lora E"): r"changes shared\.weight, which the model never reads itself",
    ("t5", "lora T"): r"share one weight.* no config can say",
    ("bart", "lora E"): r"changes model\.shared\.weight, which the model never reads itself",
    ("bart", "saved E"): r"reads model\.decoder\.embed_tokens\.weight and model\.encoder",
}


@pytest.mark.parametrize(("case", "says"), REFUSED.items())
def test_what_no_checkpoint_can_hold_is_refused(
    case: tuple[str, str], says: str, tmp_path: Path
) -> None:
    made = make(model(*case), tmp_path)
    with pytest.raises(NotMergeable, match=says):
        merge.plan(opened(made.base), [Source("it", read_adapter(made.adapter))])
