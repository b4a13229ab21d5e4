"""Rank and scaling of each module, against the expression that PEFT evaluates."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any, Literal, get_args, get_origin, get_type_hints

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from patience import ends
from peft import LoraConfig

from adapterhub.errors import AdapterHubError, InvalidAdapter, SchemaError
from adapterhub.methods import lora, lora_config, patterns
from adapterhub.methods.patterns import Patterns

MODULES = [
    "model.layers.0.self_attn.q_proj",
    "model.layers.1.self_attn.q_proj",
    "model.layers.10.self_attn.q_proj",
    "model.layers.1.mlp.q_proj_extra",
    "q_proj",
    "bert.encoder.layer.0.attention.self.query",
    "h.0.attn.c_attn",
]


def by_peft(values: Mapping[str, Any], module: str, default: Any) -> Any:
    """What peft.utils.other.get_pattern_key says, with Python's own `re`."""
    for key in values:
        if re.match(rf"(.*\.)?({key})$", module):
            return values[key]
    return values.get(module, default)


KEYS = [
    "q_proj",
    "q.proj",
    "self_attn.q_proj",
    "layers.1.self_attn.q_proj",
    "model.layers.0.self_attn.q_proj",
    r"model\.layers\.\d+\.self_attn\.q_proj",
    "layers.[0-4].self_attn.q_proj",
    "^model.layers.0.self_attn.q_proj$",
    "^q_proj",
    "q_proj$",
    ".*",
    ".*q_proj",
    "q_proj|query",
    "(?:h|layer).0.*",
    r"layers\.1\d\..*",
    "proj",
    "",
    "nothing",
    "c_attn",
    "q_proj_extr.",
    r"layers\.1{1}\.mlp\..*",
    "Q_PROJ",
]


@pytest.mark.parametrize("key", KEYS)
@pytest.mark.parametrize("module", MODULES)
def test_one_key_matches_as_in_peft(key: str, module: str) -> None:
    expected = by_peft({key: 3}, module, None)
    assert Patterns({key: 3}).find(module) == expected


@given(st.permutations(KEYS), st.sampled_from(MODULES))
@settings(max_examples=200, deadline=None)
def test_the_first_key_that_matches_wins(keys: list[str], module: str) -> None:
    values = {key: number for number, key in enumerate(keys)}
    assert Patterns(values).find(module) == by_peft(values, module, None)


NAMES = st.text("ab01._-", min_size=1, max_size=8)


@given(st.lists(NAMES, max_size=4, unique=True), NAMES)
@settings(max_examples=300, deadline=None)
def test_plain_keys_match_as_expressions_do(keys: list[str], module: str) -> None:
    values = {key: number for number, key in enumerate(keys)}
    assert Patterns(values).find(module) == by_peft(values, module, None)


@pytest.mark.parametrize("rslora", [False, True])
@pytest.mark.parametrize("module", MODULES)
def test_rank_and_scaling(module: str, rslora: bool) -> None:
    ranks = {"layers.1.*": 4, "q_proj": 16, "query": 3}
    alphas = {"c_attn": 5, r".*\.0\..*": 2.5}
    config = lora.parse(
        {
            "r": 8,
            "lora_alpha": 32,
            "use_rslora": rslora,
            "rank_pattern": ranks,
            "alpha_pattern": alphas,
        }
    )
    rank, alpha = by_peft(ranks, module, 8), by_peft(alphas, module, 32)
    assert config.rank(module) == rank
    expected = alpha / math.sqrt(rank) if rslora else alpha / rank
    assert config.scaling(module, rank) == expected


def test_defaults_are_those_of_peft() -> None:
    config = lora.parse({"r": 4})
    assert (config.rank("q"), config.scaling("q", 4)) == (4, 2.0)
    assert lora.parse({"r": 4.0}).rank("q") == 4


EXPLOSIVE = [
    *("(a|a)*[bc]", "(a|aa)+$b?", "((a{1,30}){1,30}){1,30}[bc]", "(a+)+[bc]", "(a*)*(a*)*[bc]"),
    *("(.*a){25}[bc]", "([a-z]+)*[bc]", r"(.*\.)+q", r"(\w+|\d+|\.)*", "(?:(?:a+)?b?)+", "(a+?)+"),
    *("(?=(a+)+)b", "(?!.*(a+)+)b", "(?:x(a|b|ab)*)?", "(?>(a+)+)b", "(a)?(?(1)(b+)+|c)"),
]
HARMLESS = [
    *(r".*\.(q|k)_proj", r"(.*\.)?q", r"(\d+\.)*q", r"(?:[a-z_]+\.)+q", "(q|k|v)*", "(ab|cd)+"),
    *(r"(\.[^.]+)*q", "(a+){2}", "(a{1,2}){3}", "(?!.*vision).*q", r"(?:(\d)\1)+", "a*b*c*"),
]


@pytest.mark.parametrize("key", EXPLOSIVE)
def test_a_pattern_that_could_explode_is_an_error_at_once(key: str) -> None:
    config = lora.parse({"r": 4, "rank_pattern": {key: 8}})
    with ends(), pytest.raises(InvalidAdapter) as caught:
        config.rank("q" * 60 + "!b")
    assert caught.value.message == (
        f"pattern {key!a} of adapter_config.json cannot be used: it can take too long to match: "
        "repeats within repeats"
    )
    assert "rank_pattern" in caught.value.remedy


@pytest.mark.parametrize("key", HARMLESS)
def test_a_pattern_that_cannot_explode(key: str) -> None:
    assert Patterns({key: 8}).find("something.else!") in (None, 8)


def test_a_pattern_that_is_slow_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(patterns, "MATCH_SECONDS", 0.01)
    refused = pytest.raises(InvalidAdapter, match="cannot be used: it takes too long to match")
    with ends(), refused:
        Patterns({".*?[ab].*?" * 6 + "[^ab]": 8}).find("ab" * 300)


def test_many_slow_patterns_are_an_error_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(patterns, "TOTAL_SECONDS", 0.05)
    said = "all patterns together take too long to match"
    many = Patterns({f"x{number}": 1 for number in range(5000)} | {"x.y.*": 1, ".*": 2})
    with pytest.raises(InvalidAdapter, match=said):
        for number in range(100_000):
            assert many.find(f"model.layers.{number}.q_proj") == 2
    endless = Patterns({f"x{number}.q_proj": 1 for number in range(300_000)})
    with pytest.raises(InvalidAdapter, match=said):
        endless.find("q_proj")


@pytest.mark.parametrize(
    ("key", "said"),
    [
        ("(", "missing \\), unterminated subpattern"),
        ("[a", "unterminated character set"),
        ("*", "nothing to repeat"),
        ("q{e<2}", "a brace in it is no count"),
        (r"\p{Lu}", "a brace in it is no count"),
        (r"\pL", "bad escape"),
        ("(?V1)q", "unknown extension"),
        ("[[:alpha:]]", "Possible nested set"),
        ("(?i)q", "global flags not at the start"),
        ("(" * 480 + ")" * 480 + "*", "nothing|recursion|too many|"),
        ("(a)" * 400, "it has 1200 characters, at most 1000 are taken"),
    ],
)
def test_a_pattern_that_python_would_not_read_so(key: str, said: str) -> None:
    with pytest.raises(InvalidAdapter, match=said) as caught:
        lora.parse({"r": 4, "alpha_pattern": {key: 8}}).scaling("q", 4)
    assert "of adapter_config.json cannot be used" in caught.value.message


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({}, 'missing the field "r"'),
        ({"r": 0}, "r: got 0"),
        ({"r": "8"}, 'r: got "8", expected an integer'),
        ({"r": True}, "r: got true, expected an integer"),
        ({"r": 8, "lora_alpha": "16"}, "lora_alpha: got"),
        ({"r": 8, "lora_alpha": 10**20}, "lora_alpha: got 100000000000000000000"),
        ({"r": 8, "rank_pattern": {"q": 0.5}}, "rank_pattern.q: got 0.5"),
        ({"r": 8, "alpha_pattern": {"q": None}}, "alpha_pattern.q: got null"),
        ({"r": 8, "rank_pattern": ["q"]}, "rank_pattern: got"),
        ({"r": 8, "rank_pattern": {f"m{n}": 1 for n in range(10_001)}}, "rank_pattern: "),
    ],
)
def test_a_config_that_its_schema_refuses(fields: dict[str, Any], said: str) -> None:
    with pytest.raises(SchemaError) as caught:
        lora.parse(fields)
    assert any(said in detail for detail in caught.value.details), caught.value.details


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("field", ["lora_alpha", "q"])
def test_alpha_is_finite(field: str, value: float) -> None:
    where = {"lora_alpha": value} if field == "lora_alpha" else {"alpha_pattern": {"q": value}}
    with pytest.raises(AdapterHubError) as caught:
        lora.parse({"r": 8, **where})
    assert field in str(caught.value)


def test_every_field_is_decided_once() -> None:
    groups = [lora_config.USED, lora_config.IDLE, frozenset(lora_config.VARIANTS)]
    assert sum(map(len, groups)) == len(frozenset().union(*groups))
    assert frozenset().union(*groups) == lora.fields() >= set(LoraConfig().to_dict())


def test_every_initialisation_of_peft_is_known() -> None:
    """Each either leaves the base alone, or is refused under its own name."""
    harmless = {"gaussian", "eva", "orthogonal", "mica"}
    annotated = get_type_hints(LoraConfig)["init_lora_weights"]
    (named,) = [kind for kind in get_args(annotated) if get_origin(kind) is Literal]
    assert len(get_args(named)) >= 9
    for init in get_args(named):
        changing = lora_config.init_that_changes_the_base({"init_lora_weights": init})
        assert changing == ("" if init in harmless else init.partition("_")[0])
        lora_config.refuse_variants({"init_lora_weights": init}, base_is_initialised=True)
