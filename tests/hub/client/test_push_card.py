"""The README.md that is sent: what it gains, what it keeps, and what is said where they differ."""

from __future__ import annotations

from typing import Any

import pytest

from adapterhub.hub.client.card import Card, Subject, body, compose, wanted

MANIFEST: dict[str, Any] = {
    "format": "peft",
    "method": "lora",
    "variants": ["dora"],
    "rank": {"min": 4, "max": 8, "pattern": {}},
    "alpha": 16,
    "dtype": "BF16",
    "parameters": 1234567,
    "task": "CAUSAL_LM",
    "labels": ["O", "A|B"],
    "base": {"name": "owner/base", "revision": "f" * 40, "weights_root": None},
    "files": [],
}


def subject(card: dict[str, Any] | None = None, **manifest: Any) -> Subject:
    return Subject("me/ner", MANIFEST | manifest, card or {})


def codes(card: Card) -> list[str]:
    return [finding.code for finding in card.findings]


# --- what is wanted ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("manifest", "expected"),
    [
        ({}, {"library_name": "peft", "pipeline_tag": "text-generation"}),
        ({"format": "adapterhub"}, {"library_name": "adapter-transformers"}),
        ({"format": "tfew"}, {"library_name": None}),
        ({"task": "TOKEN_CLS"}, {"pipeline_tag": "token-classification"}),
        ({"task": None}, {"pipeline_tag": None}),
        ({}, {"base_model": "owner/base", "base_model_relation": "adapter"}),
        ({"base": {"name": "/x/base"}}, {"base_model": None, "base_model_relation": None}),
        ({"base": {"name": None}}, {"tags": ["lora"]}),
        ({"method": "ia3"}, {"tags": ["ia3", "base_model:adapter:owner/base"]}),
    ],
)
def test_what_the_manifest_says(manifest: dict[str, Any], expected: dict[str, Any]) -> None:
    found = wanted(subject(**manifest))
    assert {key: found.get(key) for key in expected} == expected


def test_what_the_registrys_card_says() -> None:
    found = wanted(
        subject(
            {
                "licence": "Apache-2.0",
                "topics": ["lora", "x"],
                "language": "en",
                "metrics": {"b": 1, "a": 2},
            }
        )
    )
    assert found["license"] == "apache-2.0"
    assert found["tags"] == ["lora", "x", "base_model:adapter:owner/base"]
    assert found["language"] == ["en"]
    assert found["metrics"] == ["a", "b"]
    found = wanted(subject({"licence": "My Own Licence"}))
    assert (found["license"], found["license_name"]) == ("other", "My Own Licence")


# --- the adapter's own text -------------------------------------------------------------------


def test_what_trainers_write_is_completed() -> None:
    readme = (
        "---\nbase_model: owner/base\nlibrary_name: peft\ntags:\n"
        "- base_model:adapter:owner/base\n- lora\n- transformers\n---\n\n# Model Card\n"
    )
    made = compose(subject({"readme": readme, "topics": ["ner"], "licence": "mit"}), None)
    assert made.text == readme.replace(
        "- transformers\n---",
        "- transformers\n- ner\nbase_model_relation: adapter\npipeline_tag: text-generation\n"
        "license: mit\n---",
    )
    assert made.findings == ()


def test_a_path_that_a_trainer_wrote_is_replaced_and_a_stale_tag_is_told() -> None:
    readme = "---\nbase_model: /home/jo/base\ntags: ['base_model:adapter:/home/jo/base']\n---\n"
    made = compose(subject({"readme": readme}), None)
    assert made.front["base_model"] == "owner/base"
    assert "tags: base_model:adapter:/home/jo/base" in made.findings[0].message


def test_a_list_of_bases_is_left_where_it_names_ours() -> None:
    readme = "---\nbase_model: [Owner/Base, x/y]\nlicense: mit\n---\n"
    made = compose(subject({"readme": readme}), None)
    assert made.front["base_model"] == ["Owner/Base", "x/y"]
    assert made.findings == ()


def test_an_edit_that_a_text_contradicts_is_told_and_the_text_kept() -> None:
    readme = "---\nlicense: mit\n---\n"
    made = compose(subject({"readme": readme, "licence": "apache-2.0"}), None)
    assert made.front["license"] == "mit"
    assert codes(made) == ["card-differs"]
    made = compose(subject({"readme": readme, "licence": "My Own"}), None)
    assert "license_name" not in made.front


@pytest.mark.parametrize("readme", ["---\na: [\n---\nx", "---\na: 1\nx", "---\n- a\n---\n"])
def test_front_matter_that_cannot_be_read_is_left_alone(readme: str) -> None:
    made = compose(subject({"readme": readme}), None)
    assert made.text == readme
    assert made.front == {}
    assert codes(made) == ["card-unreadable"]


# --- the hub's text ---------------------------------------------------------------------------


def test_what_the_adapter_came_with_fills_what_the_hub_leaves_open() -> None:
    own = "---\nlicense: mit\ndatasets: [a/b]\nlanguage: de\n---\n# Own\n"
    there = "---\nlanguage: en\n---\n# There\n"
    made = compose(subject({"readme": own, "licence": "mit"}), there)
    assert made.front["datasets"] == ["a/b"]
    assert made.front["license"] == "mit"
    assert made.front["language"] == "en"
    assert made.text.endswith("---\n# There\n")


def test_what_an_earlier_push_said_of_another_base_is_renewed() -> None:
    before = MANIFEST | {"base": {**MANIFEST["base"], "name": "owner/old"}}
    there = compose(subject({}, **before), None).text
    made = compose(Subject("me/ner", MANIFEST, {}, (), before), there)
    assert made.front["base_model"] == "owner/base"
    theirs = there.replace("base_model: owner/old", "base_model: their/own")
    made = compose(Subject("me/ner", MANIFEST, {}, (), before), theirs)
    assert made.front["base_model"] == "their/own"
    assert codes(made) == ["card-differs", "card-differs"]  # the base, and its tag


def test_composing_twice_changes_nothing() -> None:
    for card in ({}, {"readme": "# Own\r\n\r\nwords\r\n"}, {"topics": ["a"], "licence": "mit"}):
        first = compose(subject(card), None)
        again = compose(subject(card), first.text)
        assert again.text == first.text
        known = Subject("me/ner", MANIFEST, card, {body(first.text)}, MANIFEST)
        assert compose(known, first.text).text == first.text


# --- a text of ours ---------------------------------------------------------------------------


def test_a_text_is_made_where_there_is_none() -> None:
    made = compose(subject({"description": "Finds <b>names</b>", "metrics": {"f1": 0.9}}), None)
    assert "\n# ner\n\nFinds \\<b\\>names\\</b\\>\n" in made.text
    assert "| method | lora + dora |\n| rank | 4–8 |\n| alpha | 16 |" in made.text
    assert "| labels | O, A\\|B |\n| f1 | 0.9 |" in made.text
    assert "PeftModel" in made.text
    assert "PeftModel" not in compose(subject(format="adapterhub"), None).text


def test_an_empty_text_on_the_hub_is_filled() -> None:
    assert "# ner" in compose(subject(), "").text
    made = compose(subject(), "---\nlicense: mit\n---\n")
    assert made.text.startswith("---\nlicense: mit\n")
    assert "# ner" in made.text
