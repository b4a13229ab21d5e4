"""The front matter of a model card, as strangers write it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from patience import ends

from adapterhub.formats import card


def read(tmp_path: Path, data: str | bytes) -> tuple[dict[str, Any], list[str]]:
    """The fields without the readme, and the problems but the missing licence."""
    path = tmp_path / "README.md"
    path.write_bytes(data if isinstance(data, bytes) else data.encode())
    fields, problems = card.read(path)
    assert not any(p.fatal for p in problems)
    stated = "licence" in fields
    assert [p.code for p in problems].count("no-licence") == (0 if stated else 1)
    readme = fields.pop("readme", None)
    assert readme is None or isinstance(readme, str)
    return fields, [p.message for p in problems if p.code == "card"]


def test_fields_are_taken_under_the_registrys_names(tmp_path: Path) -> None:
    text = "---\nlicense: mit\nlanguage:\n- en\n- de\ntags: [lora, ner]\nother: 1\n---\n# Card\n"
    assert read(tmp_path, text) == (
        {"licence": "mit", "language": ["en", "de"], "topics": ["lora", "ner"]},
        [],
    )
    assert card.read(tmp_path / "README.md")[0]["readme"] == text


@pytest.mark.parametrize(
    "text",
    [
        "---\r\nlicense: mit\r\n---\r\n# Card\r\n",
        "\ufeff---\nlicense: mit\n---\n",
        "--- \nlicense: mit\n---",
        "---\nlicense: mit\n--- \nx: [",
        "---\ntags: []\nlanguage: 7\nlicense: 'mit'\n---\n---\n",
    ],
)
def test_spellings_of_the_fence(tmp_path: Path, text: str) -> None:
    assert read(tmp_path, text) == ({"licence": "mit"}, [])


@pytest.mark.parametrize(
    "text",
    [
        "",
        "# Card",
        "---",
        "---\n---\n",
        "---\n- a\n---\n",
        "---\nlicense: [mit]\n---\n",
        "----\na\n",
    ],
)
def test_cards_that_say_nothing(tmp_path: Path, text: str) -> None:
    assert read(tmp_path, text) == ({}, [])


def test_one_word_is_a_list_of_one_and_other_values_are_left(tmp_path: Path) -> None:
    text = "---\nlanguage: en\ntags: [1, null, '', x, {y: z}, 2020-01-01]\n---\n"
    assert read(tmp_path, text) == ({"language": ["en"], "topics": ["x"]}, [])


BOMB = "---\na: &a [x, x]\n" + "".join(
    f"{b}: &{b} [*{a}, *{a}]\n" for a, b in zip("abcdefghijklm", "bcdefghijklmn", strict=True)
)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (BOMB + "---\n", "uses YAML aliases"),
        ("---\nlicense: mit\n", "has no end"),
        ("---\nlicense: mit\n--\n", "has no end"),
        ("---\nx: " + "y" * 70_000 + "\n---\n", "is larger than 64 KiB"),
        ("---\nlicense: [mit\n---\n", "is not valid YAML: while parsing a flow sequence"),
        ("---\nx: !!python/object/apply:os.system [true]\n---\n", "is not valid YAML: could not"),
        ("---\n" + "[" * 60_000 + "\n---\n", "is nested deeper than 30 levels"),
        ("---\n" + "- " * 30_000 + "\n---\n", "is nested deeper than 30 levels"),
        ("---\n" + "{a: " * 15_000 + "\n---\n", "is nested deeper than 30 levels"),
        ("---\nx: \x00\n---\n", "is not valid YAML"),
        ("---\nx: 2020-99-99\n---\n", "is not valid YAML: month must be in 1..12"),
        ("---\nx: !!timestamp soon\n---\n", "is not valid YAML: 'NoneType' object"),
        ('---\nx: !!int ""\n---\n', "is not valid YAML: string index out of range"),
        ("---\nx: !!bool maybe\n---\n", "is not valid YAML: 'maybe'"),
        ("---\nx: " + "1:" * 300 + "1.0\n---\n", "is not valid YAML: int too large"),
        ("---\nx: [" + "a," * 30_000 + "]\n---\n", "has more than 20000 parts"),
        ("x" * (1024 * 1024 + 1), "larger than 1 MiB and is left aside"),
    ],
    ids=[
        "bomb",
        "end",
        "dashes",
        "large",
        "flow",
        "python",
        "deep",
        "dashed",
        "braced",
        "nul",
        "date",
        "timestamp",
        "whole",
        "bool",
        "sixties",
        "parts",
        "huge",
    ],
)
def test_front_matter_that_is_left_aside(tmp_path: Path, text: str, said: str) -> None:
    with ends():
        fields, (message,) = read(tmp_path, text)
    assert fields == {} and said in message


def test_bytes_that_are_no_text_are_replaced_and_told(tmp_path: Path) -> None:
    data = "---\nlicense: mit\ntags: [müll]\n---\n".encode("latin-1")
    fields, (message,) = read(tmp_path, data)
    assert fields == {"licence": "mit", "topics": ["m\ufffdll"]}
    assert message.startswith("README.md is not UTF-8 from byte 25 on")


def test_no_card(tmp_path: Path) -> None:
    fields, (problem,) = card.read(tmp_path / "README.md")
    assert (fields, problem.code) == ({}, "no-licence")
    assert problem.remedy == "adapterhub edit REF --licence ID"
