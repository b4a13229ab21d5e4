from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from adapterhub.errors import InvalidName
from adapterhub.store import Ref, check_name, check_tag, names, parse_ref

PART = r"[a-z0-9]([a-z0-9._-]*[a-z0-9])?"
parts = st.from_regex(re.compile(PART), fullmatch=True).filter(lambda part: len(part) <= 128)
spelt = st.one_of(parts, st.tuples(parts, parts).map("/".join)).filter(
    lambda name: ".jsonl/" not in name
)


@given(spelt, parts, st.text("0123456789abcdef", min_size=4, max_size=64))
def test_every_ref_of_valid_parts_is_read_back(name: str, tag: str, digits: str) -> None:
    assert check_name(name) == name
    assert parse_ref(name) == Ref(name)
    assert parse_ref(f"{name}:{tag}") == Ref(name, tag=tag)
    assert parse_ref(f"{name}@{digits}") == parse_ref(f"{name}@sha256:{digits}")
    assert parse_ref(str(Ref(name, digest_prefix=digits))) == Ref(name, digest_prefix=digits)
    assert str(parse_ref(name)) == f"{name}:latest"


@given(st.text(max_size=300))
def test_a_name_is_valid_just_when_the_pattern_says_so_and_proposals_are_valid(text: str) -> None:
    pieces = text.split("/")
    valid = (
        len(pieces) <= 2
        and all(re.fullmatch(PART, p) and len(p) <= 128 for p in pieces)
        and not (len(pieces) == 2 and pieces[0].endswith(".jsonl"))
    )
    if valid:
        assert check_name(text) == text
        return
    with pytest.raises(InvalidName) as caught:
        check_name(text)
    proposal = names.propose(text)
    if proposal is not None:
        assert check_name(proposal) == proposal
        assert proposal in caught.value.remedy


@pytest.mark.parametrize(
    ("name", "proposal"),
    [
        ("My_Adapter", "my_adapter"),
        ("nli graph!", "nli-graph"),
        ("a/b/c", "a/b-c"),
        (".hidden", "hidden"),
        ("Team/My Adapter", "team/my-adapter"),
        ("x" * 200, "x" * 128),
        ("a.jsonl/b", "a/b"),
    ],
)
def test_a_refusal_proposes_a_spelling(name: str, proposal: str) -> None:
    with pytest.raises(InvalidName) as caught:
        check_name(name)
    assert caught.value.remedy == f"try {proposal!r}"


@pytest.mark.parametrize("name", ["", "/", "..", "../up", "a\n", "ß", "a//b", "\0", "a/", "-", "é"])
def test_hostile_names_are_refused(name: str) -> None:
    with pytest.raises(InvalidName):
        check_name(name)
    with pytest.raises(InvalidName):
        check_tag(name)


@pytest.mark.parametrize(
    ("ref", "text"),
    [
        ("a:prod@sha256:abcd", "both a tag and a digest"),
        ("a@abc", "is not 4 to 64 hexadecimal digits"),
        ("a@sha256:", "is not 4 to 64 hexadecimal digits"),
        ("a@ABCD", "is not 4 to 64 hexadecimal digits"),
        ("a:", "tag '' is empty"),
        ("a:b/c", "tag 'b/c' is not made of small letters"),
        ("@abcd", "name '' is empty"),
        ("a" * 129, "has a part of 129 characters; at most 128"),
        ("a/b/c", "has more than one '/'"),
    ],
)
def test_a_bad_ref_says_what_is_wrong(ref: str, text: str) -> None:
    with pytest.raises(InvalidName, match=re.escape(text)):
        parse_ref(ref)
