"""JSON of strangers: what is refused, and in which words."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from adapterhub import strictjson
from adapterhub.errors import NotFound, SchemaError


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('{"r": 1, "r": 2}', "the key 'r' occurs twice"),
        ('{"a": {"b": 1, "b": 1}}', "the key 'b' occurs twice"),
        ('{"a": NaN}', "NaN is not a JSON value"),
        ('{"a": -Infinity}', "-Infinity is not a JSON value"),
        ('{"a": 1e999}', "the number 1e999 is too large"),
        ('{"a": %s}' % ("9" * 400), f"the number {'9' * 40} is too large"),
        ('{"a": %s}' % ("9" * 10_000), f"the number {'9' * 40} is too large"),
        ('{"a": "\\ud800"}', "a text holds U+D800 alone, which is no character"),
        ('{"\\uDC00": 1}', "a text holds U+DC00 alone"),
        ("[" * 200_000, "nested too deeply"),
        ('{"a":' * 200_000, "nested too deeply"),
        ("", "Expecting value"),
        ('{"a": 1} x', "Extra data"),
        (b'{"a": "\xff"}', "invalid start byte"),
        (b"\xff\xfe{\x00}\x00", "invalid start byte"),
    ],
)
def test_refused(text: str | bytes, said: str) -> None:
    with pytest.raises(ValueError) as caught:
        strictjson.loads(text)
    assert said in str(caught.value)


def test_what_is_valid_comes_through_unchanged() -> None:
    text = b'\xef\xbb\xbf{"b": [1, -2.5, 1e-320, true, null], "a": "\\ud83d\\ude00 \\\\ud800"}'
    document = strictjson.loads(text)
    assert document == {"b": [1, -2.5, 1e-320, True, None], "a": "\U0001f600 \\ud800"}
    assert list(document) == ["b", "a"]
    assert strictjson.loads("123456789012345678901234567890") == 123456789012345678901234567890


def test_constants_are_let_in_where_asked_for() -> None:
    document = strictjson.loads('{"a": NaN, "b": -Infinity}', constants=True)
    assert math.isnan(document["a"]) and document["b"] == -math.inf


def test_a_file_is_read_with_a_limit(tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    path.write_text('{"a": 1}')
    assert strictjson.load_object(path, limit=8) == {"a": 1}
    with pytest.raises(SchemaError, match=r"config\.json is larger than 7 bytes, too large"):
        strictjson.load_object(path, limit=7)


def test_an_endless_file_is_not_read_to_its_end() -> None:
    with pytest.raises(SchemaError, match="/dev/zero is larger than 4,194,304 bytes"):
        strictjson.load_object(Path("/dev/zero"))


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"[]", "holds a JSON list, expected an object"),
        (b"null", "holds a JSON NoneType, expected an object"),
        (b"{", "is not valid JSON: Expecting property name"),
        (b"\x80\x04", "is not valid JSON: 'utf-8' codec"),
    ],
)
def test_a_file_that_is_no_object(tmp_path: Path, data: bytes, said: str) -> None:
    path = tmp_path / "config.json"
    path.write_bytes(data)
    with pytest.raises(SchemaError) as caught:
        strictjson.load_object(path)
    assert f"{path} {said}" in caught.value.message
    assert caught.value.remedy


def test_a_file_that_was_not_fetched(tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    path.write_bytes(b"version https://git-lfs.github.com/spec/v1\noid x")
    with pytest.raises(SchemaError, match="is a Git-LFS pointer") as caught:
        strictjson.load_object(path)
    assert "git lfs pull" in caught.value.remedy


def test_a_file_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(NotFound, match="cannot be read: No such file or directory"):
        strictjson.load_object(tmp_path / "config.json")
    with pytest.raises(NotFound, match="cannot be read: Is a directory"):
        strictjson.load_object(tmp_path)
