"""The tokenizer and config.json of a merged directory."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from building import LLAMA, VOCABULARY, llama, plan_of, qs, run, save_adapter, save_base, source

import adapterhub
from adapterhub.merging import MergePlan, tokenizers
from adapterhub.merging.work import Source

OWN = {"tokenizer.json": '{"version": "1.0"}'}
LAST = VOCABULARY - 1


def bpe(highest: Any, **fields: Any) -> str:
    model = {"type": "BPE", "vocab": {"a": 0, "b": highest}, "merges": []}
    return json.dumps({"model": model, **fields})


def unigram(tokens: int) -> str:
    return json.dumps({"model": {"type": "Unigram", "vocab": [["a", -1.0]] * tokens}})


def added(highest: int) -> str:
    return bpe(1, added_tokens=[{"id": 2, "content": "c"}, {"id": highest, "content": "d"}])


@pytest.fixture
def base(tmp_path: Path) -> Path:
    return save_base(tmp_path / "base", llama(), LLAMA)


def adapter(path: Path, files: Mapping[str, str], **fields: Any) -> Source:
    save_adapter(path, qs(**fields))
    for name, text in files.items():
        (path / name).write_text(text)
    return source(path, tokenizer={name: path / name for name in files})


def owners(plan: MergePlan) -> set[str]:
    return {path.parent.name for path in plan.companions.values()}


TAKEN: dict[str, dict[str, str]] = {
    "a table": {"tokenizer.json": bpe(LAST)},
    "a list": {"tokenizer.json": unigram(VOCABULARY)},
    "added tokens": {"tokenizer.json": added(LAST)},
    "with other files": {"tokenizer.json": bpe(LAST), "tokenizer_config.json": "{}"},
    "BPE's older files": {"vocab.json": '{"a": 9}', "merges.txt": "", "added_tokens.json": "{}"},
    "WordPiece's older files": {"vocab.txt": "a\n" * VOCABULARY},
    "with a sentencepiece model": {"tokenizer.json": bpe(LAST), "tokenizer.model": "?"},
}
KEPT: dict[str, tuple[dict[str, str], str]] = {
    "a table": ({"tokenizer.json": bpe(VOCABULARY)}, "has a token with the number 10, and the"),
    "a list": ({"tokenizer.json": unigram(VOCABULARY + 1)}, "number 10, and the result 10 rows"),
    "added tokens": ({"tokenizer.json": added(99)}, "number 99"),
    "decoder": (
        {
            "tokenizer.json": bpe(1),
            "tokenizer_config.json": '{"added_tokens_decoder": {"12": {}}}',
        },
        "number 12",
    ),
    "added file": ({"vocab.json": '{"a": 9}', "added_tokens.json": '{"b": 10}'}, "number 10"),
    "lines": ({"vocab.txt": "a\n" * 11}, "number 10"),
    "sentencepiece": ({"tokenizer.model": "?"}, "none of tokenizer.json, vocab.json, vocab.txt am"),
    "only a template": ({"chat_template.jinja": "{{ x }}"}, "among chat_template.jinja"),
    "damaged": ({"tokenizer.json": '{"model": '}, "is not valid JSON"),
    "twice": ({"tokenizer.json": '{"model": {"vocab": {"a": 1, "a": 2}}}'}, "occurs twice"),
    "no vocabulary": ({"tokenizer.json": '{"model": {"vocab": 7}}'}, "has no model.vocab"),
    "no object": ({"tokenizer.json": "[]"}, "holds a JSON list"),
    "a text": ({"tokenizer.json": bpe("7")}, "whose number is none"),
    "true": ({"tokenizer.json": bpe(True)}, "whose number is none"),
    "negative": ({"tokenizer.json": added(-1)}, "whose number is none"),
    "no id": ({"tokenizer.json": bpe(1, added_tokens=[7])}, "whose number is none"),
    "odd digits": (
        {
            "tokenizer.json": bpe(1),
            "tokenizer_config.json": '{"added_tokens_decoder": {"²": {}}}',
        },
        "whose number is none",
    ),
}


@pytest.mark.parametrize("files", TAKEN.values(), ids=TAKEN)
def test_the_adapters_tokenizer_comes_along_whole(
    base: Path, tmp_path: Path, files: dict[str, str]
) -> None:
    (base / "special_tokens_map.json").write_text("{}")
    (base / "generation_config.json").write_text("{}")
    plan = plan_of(base, adapter(tmp_path / "a", files))
    assert plan.companions.keys() == {*files, "generation_config.json"}
    assert {plan.companions[name].parent.name for name in files} == {"a"}
    assert plan.notes == ("the tokenizer is that of a",)
    report = run(base, tmp_path / "out", adapter(tmp_path / "b", files))
    assert report.notes == ["the tokenizer is that of b"]
    assert {name: (tmp_path / "out" / name).read_text() for name in files} == files


@pytest.mark.parametrize(("files", "says"), KEPT.values(), ids=KEPT)
def test_a_tokenizer_that_does_not_fit_stays_behind_and_the_note_says_why(
    base: Path, tmp_path: Path, files: dict[str, str], says: str
) -> None:
    plan = plan_of(base, adapter(tmp_path / "a", files))
    assert owners(plan) == {"base"}
    (note,) = plan.notes
    assert note.startswith("the tokenizer is the base's, not that of a: ") and says in note


def test_the_same_tokenizer_as_the_bases_is_not_worth_a_word(base: Path, tmp_path: Path) -> None:
    plan = plan_of(base, adapter(tmp_path / "a", OWN))
    assert (owners(plan), plan.notes) == ({"base"}, ())


def test_several_adapters_must_bring_the_same_one(base: Path, tmp_path: Path) -> None:
    one = adapter(tmp_path / "one", {"tokenizer.json": bpe(LAST)})
    two = adapter(tmp_path / "two", {"tokenizer.json": bpe(LAST)}, seed=7)
    bare = adapter(tmp_path / "bare", {}, seed=9)
    other = adapter(tmp_path / "other", {"tokenizer.json": bpe(LAST - 1)}, seed=11)
    assert plan_of(base, bare, one, two).notes == ("the tokenizer is that of one and two",)
    plan = plan_of(base, one, other)
    assert owners(plan) == {"base"}
    assert plan.notes == ("the tokenizer is the base's, not that of one and other: they differ",)


def test_a_base_without_a_tokenizer_gets_one_only_if_it_fits(base: Path, tmp_path: Path) -> None:
    (base / "tokenizer.json").unlink()
    plan = plan_of(base, adapter(tmp_path / "a", {"tokenizer.json": bpe(99)}))
    assert plan.companions == {}
    assert plan.notes[0].startswith("the tokenizer is left out, which a brings: it has a token")
    assert owners(plan_of(base, adapter(tmp_path / "b", {"tokenizer.json": bpe(1)}))) == {"b"}


def test_an_unknown_architecture_keeps_the_bases_tokenizer(tmp_path: Path) -> None:
    base = save_base(tmp_path / "base", llama(), {"model_type": "no-such-model"})
    plan = plan_of(base, adapter(tmp_path / "a", {"tokenizer.json": bpe(1)}))
    assert owners(plan) == {"base"} and "nothing is known of the number" in plan.notes[-1]


def test_a_tokenizer_beyond_the_limit_is_not_read(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tokenizers, "LIMIT_BYTES", 20)
    plan = plan_of(base, adapter(tmp_path / "a", {"tokenizer.json": bpe(LAST)}))
    assert "tokenizer.json is larger than 20 bytes" in plan.notes[0]


def test_paths_and_versions_of_the_registry_bring_their_tokenizers(
    base: Path, tmp_path: Path
) -> None:
    place = tmp_path / "a"
    adapter(place, {"tokenizer.json": bpe(LAST), "tokenizer_config.json": "{}"})
    with adapterhub.open(tmp_path / "home") as registry:
        registry.add(place, name="kept", base=base)
        by_path = adapterhub.plan_merge(base, [place], registry=registry)
        by_ref = adapterhub.plan_merge(base, ["kept"], registry=registry)
        by_file = adapterhub.plan_merge(
            base, [place / "adapter_model.safetensors"], registry=registry
        )
    for plan in (by_path, by_ref, by_file):
        found = {name: path.read_text() for name, path in plan.companions.items()}
        assert found == {"tokenizer.json": bpe(LAST), "tokenizer_config.json": "{}"}
