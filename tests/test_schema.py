"""Sentences of schema failures: path, got, expected."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft202012Validator

from adapterhub import schema
from adapterhub.errors import SchemaError, StoreError

SHIPPED = sorted(schema.data_dir("schemas").rglob("*.json"))


def _names(path: Path) -> str:
    return path.relative_to(schema.data_dir("schemas")).with_suffix("").as_posix()


@pytest.fixture
def schemas(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., None]]:
    """Puts schemas of the test's own where the package looks for them."""

    def write(**documents: Any) -> None:
        for name, document in documents.items():
            path = tmp_path / f"{name.replace('__', '/')}.json"
            path.parent.mkdir(exist_ok=True)
            path.write_text(json.dumps(document), "utf-8")

    def clear() -> None:
        schema.load.cache_clear()
        schema._validator.cache_clear()

    monkeypatch.setattr(schema, "data_dir", lambda name: tmp_path)
    clear()
    yield write
    clear()


def _object(**properties: Any) -> dict[str, Any]:
    return {"type": "object", "properties": properties, "additionalProperties": False}


RANK = {"type": "integer", "minimum": 1, "maximum": 4096}
SHA = {"type": "string", "pattern": "^sha256:[0-9a-f]{4}$"}


@pytest.mark.parametrize(
    ("wanted", "document", "sentences"),
    [
        (_object(rank=_object(min=RANK)), {"rank": {"min": 8}}, []),
        (
            _object(rank=_object(min=RANK)),
            {"rank": {"min": "eight"}},
            ['rank.min: got "eight", expected an integer'],
        ),
        (_object(r=RANK), {"r": 0}, ["r: got 0, expected at least 1"]),
        (_object(r=RANK), {"r": 5000}, ["r: got 5000, expected at most 4096"]),
        (_object(r=RANK), {"r": True}, ["r: got true, expected an integer"]),
        (
            _object(files={"items": _object(sha256=SHA)}),
            {"files": [{"sha256": "abc"}]},
            ['files[0].sha256: got "abc", expected a string matching ^sha256:[0-9a-f]{4}$'],
        ),
        (
            _object(base={"required": ["name", "revision"]}),
            {"base": {}},
            ['base: missing the field "name"', 'base: missing the field "revision"'],
        ),
        ({"required": ["name"]}, {}, ['missing the field "name"']),
        (
            _object(name={}),
            {"colour": 1, "shape": 2},
            ["colour: unknown field", "shape: unknown field"],
        ),
        (
            {"patternProperties": {"^x": {}}, "additionalProperties": False},
            {"x1": 1, "y": 2},
            ["y: unknown field"],
        ),
        (
            {
                "$ref": "#/$defs/a",
                "$defs": {"a": {"properties": {"x": {}}}},
                "unevaluatedProperties": False,
            },
            {"x": 1, "y": 2},
            ["y: unknown field"],
        ),
        (
            _object(dtype={"enum": ["F32", 4]}),
            {"dtype": "F3"},
            ['dtype: got "F3", expected one of "F32", 4'],
        ),
        (_object(kind={"const": "merge"}), {"kind": None}, ['kind: got null, expected "merge"']),
        (
            _object(t={"type": ["string", "null"]}),
            {"t": []},
            ["t: got a list of 0 items, expected a string or null"],
        ),
        (
            _object(t={"minItems": 1}),
            {"t": []},
            ["t: got a list of 0 items, expected at least 1 item"],
        ),
        (
            _object(t={"uniqueItems": True}),
            {"t": [1, 1]},
            ["t: got a list of 2 items, expected no item twice"],
        ),
        (_object(t={"minLength": 2}), {"t": "é"}, ['t: got "é", expected at least 2 characters']),
        (_object(a={"exclusiveMinimum": 0}), {"a": 0.0}, ["a: got 0.0, expected more than 0"]),
        (_object(a=False), {"a": 1}, ["got 1, which is not allowed"]),
        (
            {"propertyNames": {"pattern": "^[a-z]+$"}},
            {"A b": 1},
            ['the field name "A b" is not allowed'],
        ),
        (
            _object(a={"type": "object", "additionalProperties": RANK}),
            {"a": {"layer.0.q": "x"}},
            ['a["layer.0.q"]: got "x", expected an integer'],
        ),
        (
            _object(a={"anyOf": [{"type": "string"}, {"type": "integer"}]}),
            {"a": {"x": 1}},
            ["a: got an object with 1 field, expected a string or an integer"],
        ),
        (
            _object(
                a={"anyOf": [{"type": "string"}, {"type": "array", "items": {"type": "integer"}}]}
            ),
            {"a": [1, "two"]},
            ['a[1]: got "two", expected an integer'],
        ),
        (
            {"oneOf": [_object(kind={"const": k}, **{k: RANK}) for k in ("lora", "ia3")]},
            {"kind": "ia3", "ia3": 0},
            ["ia3: got 0, expected at least 1"],
        ),
        (
            {"oneOf": [{"type": "number"}, {"type": "integer"}]},
            3,
            ["got 3, expected exactly one of the forms that the schema allows; it matches several"],
        ),
    ],
)
def test_sentences(
    schemas: Callable[..., None], wanted: dict[str, Any], document: Any, sentences: list[str]
) -> None:
    Draft202012Validator.check_schema(wanted)
    schemas(thing=wanted)
    assert schema.problems(document, "thing") == sentences
    assert Draft202012Validator(wanted).is_valid(document) == (not sentences)


def test_check_names_the_document_and_lists_every_problem(schemas: Callable[..., None]) -> None:
    schemas(thing=_object(r=RANK))
    schema.check({"r": 8}, "thing", what="adapter_config.json")
    with pytest.raises(
        SchemaError, match=r"^adapter_config.json does not follow the schema thing"
    ) as caught:
        schema.check({"r": 0, "x": 1}, "thing", what="adapter_config.json")
    assert set(caught.value.details) == {"r: got 0, expected at least 1", "x: unknown field"}
    assert caught.value.remedy == "correct the listed fields of adapter_config.json"


def test_problems_come_in_the_order_of_the_document(schemas: Callable[..., None]) -> None:
    schemas(thing={"properties": {"a": RANK, "b": {"items": RANK}, "c": RANK}})
    found = schema.problems({"c": 0, "b": [1, 0, 2, -1], "a": 0}, "thing")
    assert [sentence.split(":")[0] for sentence in found] == ["c", "b[1]", "b[3]", "a"]


def test_at_most_twenty_problems_then_a_count(schemas: Callable[..., None]) -> None:
    schemas(thing={"items": RANK})
    assert len(schema.problems([0] * 20, "thing")) == 20
    found = schema.problems([0] * 25, "thing")
    assert len(found) == 21
    assert found[-1] == "and 5 more"


def test_values_of_strangers_are_cut_and_harmless(
    schemas: Callable[..., None],
) -> None:
    schemas(thing={"type": "object", "additionalProperties": RANK})
    hostile = "\x1b[31m\u202e\x9b" + "x" * 100_000
    for sentence in schema.problems({hostile: hostile}, "thing"):
        assert sentence.isprintable()
        assert len(sentence) < 3 * schema.MAX_VALUE_CHARS
        assert sentence.count("\\u001b") == 2


def test_nesting_without_end_is_a_problem_not_a_crash(schemas: Callable[..., None]) -> None:
    schemas(thing={"items": {"$ref": "#"}})
    deep: list[Any] = []
    for _ in range(100_000):
        deep = [deep]
    assert schema.problems(deep, "thing") == ["nested too deeply to be checked"]
    while deep:  # taken apart by hand: freeing it in one go would recurse
        deep = deep[0]


def test_references_between_files_are_local(schemas: Callable[..., None]) -> None:
    schemas(
        top={"$id": "https://example.org/elsewhere.json", "$ref": "methods/lora.json"},
        methods__lora={"properties": {"r": {"$ref": "../rank.json"}}},
        rank=RANK,
    )
    assert schema.problems({"r": 0}, "top") == ["r: got 0, expected at least 1"]


@pytest.mark.parametrize("target", ["https://json.schemastore.org/package.json", "gone.json"])
def test_nothing_is_fetched(schemas: Callable[..., None], target: str) -> None:
    schemas(top={"$ref": target})
    with pytest.raises(StoreError, match="gone" if target == "gone.json" else "not shipped"):
        schema.problems({}, "top")


@pytest.mark.parametrize("name", ["../secrets", "/etc/passwd", "a//b", "", "A", "a.json"])
def test_a_schema_name_is_no_path(name: str) -> None:
    with pytest.raises(StoreError, match="is not the name of a schema"):
        schema.load(name)


def test_a_missing_or_damaged_schema_says_so(schemas: Callable[..., None], tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="the schema nothing cannot be read"):
        schema.load("nothing")
    (tmp_path / "broken.json").write_text("{", "utf-8")
    with pytest.raises(StoreError, match="the schema broken cannot be read"):
        schema.load("broken")
    schemas(listed=[])
    with pytest.raises(StoreError, match="is not an object"):
        schema.load("listed")


def test_data_lies_in_the_wheel_or_beside_the_package(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = tmp_path / "adapterhub"
    package.mkdir()
    monkeypatch.setattr(schema, "__file__", str(package / "schema.py"))
    with pytest.raises(StoreError, match="the folder registry of the package was not found in"):
        schema.data_dir("registry")
    (tmp_path / "registry").mkdir()
    assert schema.data_dir("registry") == tmp_path / "registry"
    (package / "_data" / "registry").mkdir(parents=True)
    assert schema.data_dir("registry") == package / "_data" / "registry"


def _references(value: Any) -> Iterator[str]:
    if isinstance(value, dict):
        yield from (v for k, v in value.items() if k == "$ref" and isinstance(v, str))
        for item in value.values():
            yield from _references(item)
    elif isinstance(value, list):
        for item in value:
            yield from _references(item)


@pytest.mark.parametrize("path", SHIPPED, ids=_names)
def test_shipped_schemas_are_valid_and_closed(path: Path) -> None:
    document = schema.load(_names(path))
    Draft202012Validator.check_schema(document)
    for reference in _references(document):
        target = reference.partition("#")[0]
        assert not target or (path.parent / target).is_file(), reference
