"""The table, the schemas and the files of the methods hold together, and with peft."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
from peft import PeftType
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING as CONFIGS

from adapterhub import schema
from adapterhub.errors import NotSupported
from adapterhub.methods import TABLE, Implementation, Method, method, method_of
from adapterhub.methods.row import ANNOTATION

SCHEMAS = schema.data_dir("schemas") / "methods"
ROWS = list(TABLE.values())
LITERATURE = (
    *("bitfit", "fishmask", "diff_pruning", "intrinsic_said", "krona", "bottleneck", "compacter"),
    *("sparse_adapter", "adamix", "mam", "unipelt", "ladder_side", "reft"),
)


def test_every_type_of_peft_has_one_row() -> None:
    types = [row.peft_type for row in ROWS if row.peft_type and not row.successor]
    assert sorted(types) == sorted(kind.value for kind in PeftType)
    for row in ROWS:
        assert TABLE[row.name] is row
        assert row.peft_type is None or row.name == row.peft_type.lower()
        assert row.successor is None or row.successor in TABLE


def test_methods_of_the_literature_have_one_too() -> None:
    assert {row.name for row in ROWS if row.peft_type is None} == set(LITERATURE)


def test_no_schema_without_a_row_and_no_row_without_its_schema() -> None:
    files = {f"methods/{path.stem}" for path in SCHEMAS.glob("[!_]*.json")}
    assert {row.schema for row in ROWS} == files


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_a_row_and_its_schema_and_its_file(row: Method) -> None:
    offered = [name for name in vars(Implementation) if not name.startswith("_")]
    assert len(offered) == 6
    assert all(callable(getattr(row.implementation, name)) for name in offered)
    assert row.mathematics.merge in ("yes", "no", "base")
    assert row.mathematics.attach in ("yes", "no")
    assert set(row.does) <= {"merge", "attach"}
    if "merge" in row.does:
        assert row.mathematics.merge != "no"
    assert set(schema.load(row.schema)[ANNOTATION]) <= {"rank", "mathematics", "note", "variants"}
    for variant in schema.load(row.schema)[ANNOTATION].get("variants", ()):
        assert variant["field"] in row.fields()
    assert row.paper is None or row.paper.startswith("https://")
    json.dumps(row.to_dict())


def test_what_merges_has_a_file_of_its_own() -> None:
    for row in ROWS:
        assert "merge" not in row.does or row.file != "generic", row.name
        assert row.does or row.file == "generic", row.name
    assert "merge" in TABLE["lora"].does and not TABLE["xlora"].does


def test_what_merges_attaches_too() -> None:
    assert {"lora", "ia3", "loha"} <= {row.name for row in ROWS if "merge" in row.does}
    assert all("attach" in row.does for row in ROWS if "merge" in row.does)


@pytest.mark.parametrize("kind", PeftType, ids=lambda kind: str(kind.value))
def test_the_schema_knows_every_field_of_pefts_config(kind: PeftType) -> None:
    row = method_of(kind.value)
    assert row is not None
    theirs = {field.name: field for field in dataclasses.fields(CONFIGS[kind])}
    assert theirs.keys() <= row.fields()
    for name, ours in row.properties.items():
        if "default" in ours and name in theirs:
            assert ours["default"] == theirs[name].default, name


def test_variants_of_methods_but_lora() -> None:
    assert method("hra").variants({"apply_GS": True}) == ("gram_schmidt",)
    assert method("hra").variants({"apply_GS": False}) == ()
    assert method("miss").variants({"init_weights": "bat"}) == ("bat",)
    assert method("miss").variants({"init_weights": True}) == ()
    assert method("bottleneck").variants({"inv_adapter": "nice", "is_parallel": True}) == (
        "invertible",
        "parallel",
    )
    assert method("oft").variants({"coft": 1}) == ()  # of another type than the schema takes
    assert method("lora").variants({"use_dora": True}) == ("dora",)


def test_a_method_that_is_not_there() -> None:
    with pytest.raises(NotSupported, match="method 'finegates' is not supported") as caught:
        method("finegates")
    assert caught.value.remedy.startswith("supported methods: adalora, adamix, adamss")


BAD: list[tuple[str, dict[str, Any], str]] = [
    ("loha", {"r": 10**9}, "r: got 1000000000, expected at most 1048576"),
    ("lokr", {"alpha": "8"}, 'alpha: got "8", expected a number'),
    ("lokr", {"alpha": 1e13}, "alpha: got 10000000000000.0, expected at most 1000000000000.0"),
    ("c3a", {"block_size": 0}, "block_size: got 0, expected at least 1"),
    ("glora", {"config_C": "constant"}, 'config_C: got "constant", expected one of "lora"'),
    ("deft", {"decomposition_method": "svd"}, "decomposition_method: got"),
    ("prompt_tuning", {}, 'missing the field "num_virtual_tokens"'),
    ("prefix_tuning", {"num_virtual_tokens": 2**21}, "num_virtual_tokens: got 2097152"),
    ("delora", {"rank_pattern": {"q": 0}}, "rank_pattern.q: got 0, expected at least 1"),
    ("frod", {"sparse_rate": 2}, "sparse_rate: got 2, expected at most 1"),
    ("trainable_tokens", {"token_indices": [-1]}, "token_indices[0]: got -1"),
    ("ia3", {"target_modules": 4}, "target_modules: got 4, expected a string or null or a list"),
    ("vera", {"revision": 4}, "revision: got 4, expected a string or null"),
]


@pytest.mark.parametrize(("name", "config", "said"), BAD)
def test_strict_on_what_changes_the_mathematics(
    name: str, config: dict[str, Any], said: str
) -> None:
    (found,) = schema.problems(config, f"methods/{name}")
    assert found.startswith(said)


def test_open_to_fields_that_are_not_known() -> None:
    config: dict[str, Any] = {
        "num_virtual_tokens": 4,
        "token_indices": [],
        "adapter_len": 1,
        "adapter_layers": 1,
    }
    config |= {"shapes": {}, "algorithm": "fastfood-v1", "seed": 1}  # what native methods need
    config |= {"reduction_factor": 2, "output": "norm"}
    for row in ROWS:
        assert schema.problems({"r": 8, **config, "new_field": [{}]}, row.schema) == []


def test_every_config_of_the_corpus_that_is_sound(corpus: Path) -> None:
    index = json.loads((corpus / "configs" / "INDEX.json").read_text())
    checked = 0
    for entry in index:
        row = method_of(str(entry["peft_type"]))
        if row is not None and entry["file"] not in UNSOUND:
            config = json.loads((corpus / "configs" / entry["file"]).read_text())
            assert schema.problems(config, row.schema) == [], entry["file"]
            checked += 1
    assert checked >= 265


# What peft refuses as well, or would do nothing with.
UNSOUND = (
    "huggingface__peft__MetaMathQA-road-llama-3.2-3B-variant2.json",
    "huggingface__peft__RLMath-trainable_tokens-grpo-qwen35-4b-gsm8k.json",
)
