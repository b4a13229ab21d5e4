"""Front matter is extended as text: what was there stays byte for byte, and means the same."""

from __future__ import annotations

from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from adapterhub.hub.client import frontmatter
from adapterhub.hub.client.frontmatter import FrontMatterError, extended, split

NEW = {"license": "mit", "tags": ["a", "base_model:adapter:o/b"]}


def extend(text: str, additions: dict[str, Any], **items: list[str]) -> str:
    return extended(split(text), additions, items).text


def test_a_text_without_one_gets_one_and_stays_as_it_is() -> None:
    text = "# Title\n\ntext\n"
    assert extend(text, {"license": "mit"}) == f"---\nlicense: mit\n---\n\n{text}"
    assert extend("", {"license": "mit"}) == "---\nlicense: mit\n---\n"
    assert extend(text, {}) == text


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("---\na: 1 # one\n---\nx", "---\na: 1 # one\nlicense: mit\n---\nx"),
        ("---\na: 1\n\n# end\n---\n", "---\na: 1\n\n# end\nlicense: mit\n---\n"),
        ("---\n---\nx", "---\nlicense: mit\n---\nx"),
        ("---\n# only this\n---\nx", "---\n# only this\nlicense: mit\n---\nx"),
        ("---\nlicense:\na: 1\n---\n", "---\nlicense: mit\na: 1\n---\n"),
        ("---\nlicense: ''\n---\n", "---\nlicense: mit\n---\n"),
        ("---\nlicense: [] # none\n---\n", "---\nlicense: mit # none\n---\n"),
        ("---\n{a: 1}\n---\n", "---\n{license: mit, a: 1}\n---\n"),
        ("---\r\na: 1\r\n---\r\nx\r\n", "---\r\na: 1\r\nlicense: mit\r\n---\r\nx\r\n"),
        ("---\n  a: 1\n---\n", "---\n  a: 1\n  license: mit\n---\n"),
        ("\n---\na: 1\n---\n", "\n---\na: 1\nlicense: mit\n---\n"),
    ],
)
def test_what_is_said_stays_and_what_is_not_comes_after_it(text: str, expected: str) -> None:
    assert extend(text, {"license": "mit"}) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("---\ntags:\n- a # first\nb: 1\n---\n", "---\ntags:\n- a # first\n- x\n- y\nb: 1\n---\n"),
        ("---\ntags:\n  - a\n---\n", "---\ntags:\n  - a\n  - x\n  - y\n---\n"),
        ("---\ntags: [a, 'b']\n---\n", "---\ntags: [a, 'b', x, y]\n---\n"),
        ("---\r\ntags:\r\n- a\r\n---\r\n", "---\r\ntags:\r\n- a\r\n- x\r\n- y\r\n---\r\n"),
        (
            "---\ntags:\n- >\n  a\n  b\nc: 1\n---\n",
            "---\ntags:\n- >\n  a\n  b\n- x\n- y\nc: 1\n---\n",
        ),
    ],
)
def test_a_list_gets_items_behind_its_last(text: str, expected: str) -> None:
    assert extend(text, {}, tags=["x", "y"]) == expected


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("---\na: 1\n", "has no end"),
        ("---\n- a\n---\n", "is no mapping"),
        ("---\na: [1\n---\n", "is not valid YAML"),
        ("---\na: 1\na: 2\n---\n", "has the key 'a' twice"),
        ("---\na: &x 1\nb: *x\n---\n", "uses YAML aliases"),
        (f"---\na: {'[' * 40}{']' * 40}\n---\n", "is nested deeper"),
        (f"---\na: {'x' * 70000}\n---\n", "is larger than 64 KiB"),
        ("---\nlicense: |\n---\n", "cannot be extended"),
    ],
)
def test_what_cannot_be_extended_says_why(text: str, said: str) -> None:
    with pytest.raises(FrontMatterError, match=said):
        extend(text, {"b": "x", "license": "mit"})


def test_items_need_a_list() -> None:
    with pytest.raises(FrontMatterError, match="has no list at tags"):
        extend("---\ntags: a\n---\n", {}, tags=["x"])


WORDS = st.text(st.characters(codec="utf-8", exclude_categories=("Cs", "Cc")), min_size=1)
VALUES = st.one_of(WORDS, st.integers(), st.booleans(), st.lists(WORDS, max_size=3))
STYLES = st.sampled_from([{"default_flow_style": flow} for flow in (None, False, True)])


@given(st.dictionaries(WORDS, VALUES, max_size=5), WORDS, STYLES, st.lists(WORDS, max_size=2))
def test_it_means_what_it_meant_and_what_was_added(
    said: dict[str, Any], body: str, style: dict[str, Any], more: list[str]
) -> None:
    text = f"---\n{yaml.safe_dump(said, allow_unicode=True, **style)}---\n{body}"
    lists = {key: more for key, value in said.items() if isinstance(value, list) and value}
    try:
        document = split(text)
        found = extended(document, {"new key": ["x", "ü: y"]}, lists)
    except FrontMatterError:  # `...` and the like, within texts
        return
    assert found.text.endswith(body)
    expected = {k: [*v, *more] if k in lists else v for k, v in said.items()}
    if found.front != document.front and "new key" not in said:
        assert frontmatter.values(found.front) == {**expected, "new key": ["x", "ü: y"]}
