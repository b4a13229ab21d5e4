"""JSON Schemas (draft 2020-12) that ship with the package, and failures that read as sentences.

    rank.min: got "eight", expected an integer
    files[0].sha256: got "abc", expected a string matching ^sha256:[0-9a-f]{64}$
    base: missing the field "name"
    colour: unknown field

A schema is named by its path below `schemas/` without `.json` (`manifest`, `methods/lora`); a
`$ref` to another one is that relative path (`methods/lora.json`). Nothing is ever fetched, and a
schema's own `$id` is ignored: the path is its identity.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal
from urllib.parse import urljoin

from adapterhub.errors import SchemaError, StoreError

if TYPE_CHECKING:
    from jsonschema import Draft202012Validator
    from jsonschema.exceptions import ValidationError
    from referencing import Resource

MAX_PROBLEMS = 20
MAX_VALUE_CHARS = 60
_BASE_URI = "file:///schemas/"  # only so that relative references can be joined; never opened
_NAME = re.compile(r"[a-z0-9_-]+(/[a-z0-9_-]+)*")
_PLAIN_KEY = re.compile(r"[A-Za-z_][A-Za-z0-9_-]{0,79}")
_REINSTALL = "reinstall adapterhub: a part of the package is missing or damaged"


def data_dir(name: Literal["schemas", "registry"]) -> Path:
    """Folder of shipped data: inside the package in a wheel, beside it in a checkout.

    Raises StoreError if neither is there.
    """
    package = Path(__file__).resolve().parent
    places = (package / "_data" / name, package.parent / name)
    for place in places:
        if place.is_dir():
            return place
    looked = " and ".join(str(place) for place in places)
    raise StoreError(
        f"the folder {name} of the package was not found in {looked}", remedy=_REINSTALL
    )


@cache
def load(name: str) -> dict[str, Any]:
    """The schema `name`, parsed; shared between callers, so not to be changed.

    Raises StoreError if the package has no such schema or its file is damaged.
    """
    if not _NAME.fullmatch(name):
        raise StoreError(f"{_show(name)} is not the name of a schema", remedy=_REINSTALL)
    path = data_dir("schemas") / f"{name}.json"
    try:
        document = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        message = f"the schema {name} cannot be read from {path}: {error}"
        raise StoreError(message, remedy=_REINSTALL) from error
    if not isinstance(document, dict):
        raise StoreError(f"the schema {name} in {path} is not an object", remedy=_REINSTALL)
    return document


def check(document: object, schema_name: str, *, what: str) -> None:
    """Raises SchemaError with one detail per problem; `what` names the document in the message."""
    found = problems(document, schema_name)
    if found:
        raise SchemaError(
            f"{what} does not follow the schema {schema_name}",
            remedy=f"correct the listed fields of {what}",
            details=found,
        )


def problems(document: object, schema_name: str) -> list[str]:
    """One sentence per problem, in the order of the document; empty if there is none.

    After `MAX_PROBLEMS` sentences the last one says how many more there are.
    """
    from referencing.exceptions import Unresolvable

    try:
        errors = list(_validator(schema_name).iter_errors(document))
    except RecursionError:
        return ["nested too deeply to be checked"]
    except Unresolvable as error:
        message = f"the schema {schema_name} refers to {error.ref}, which is not shipped"
        raise StoreError(message, remedy=_REINSTALL) from error
    errors.sort(key=_positions(document))
    found = list(dict.fromkeys(line for error in errors for line in _sentences(error)))
    if len(found) > MAX_PROBLEMS:
        return [*found[:MAX_PROBLEMS], f"and {len(found) - MAX_PROBLEMS} more"]
    return found


# --- the validator ----------------------------------------------------------------------------


@cache
def _validator(name: str) -> Draft202012Validator:
    from referencing import Registry

    load(name)
    registry: Registry[Any] = Registry(retrieve=_retrieve)  # type: ignore[call-arg]
    # Read in ahead: a registry that has to fetch does so in every check anew.
    for uri in _referenced(f"{_BASE_URI}{name}.json"):
        registry = registry.with_resource(uri, _retrieve(uri))
    return _kind()({"$ref": f"{_BASE_URI}{name}.json"}, registry=registry.crawl())


@cache
def _kind() -> type[Draft202012Validator]:
    """Where a document has more entries than it may, they are not looked at one by one."""
    from jsonschema import Draft202012Validator
    from jsonschema.validators import extend

    def bounded(keyword: str, most: str) -> Callable[..., Iterator[ValidationError]]:
        usual = Draft202012Validator.VALIDATORS[keyword]

        def check(
            validator: Any, value: Any, instance: Any, schema: Any
        ) -> Iterator[ValidationError]:
            limit = schema.get(most)
            if limit is None or not isinstance(instance, dict | list) or len(instance) <= limit:
                yield from usual(validator, value, instance, schema) or ()

        return check

    limits = {"additionalProperties": "maxProperties", "items": "maxItems"}
    ways = {keyword: bounded(keyword, most) for keyword, most in limits.items()}
    found: type[Draft202012Validator] = extend(Draft202012Validator, ways)  # type: ignore[no-untyped-call]
    return found


def _referenced(uri: str) -> set[str]:
    """`uri` and what it refers to, directly or not; what is not shipped is left out."""
    from referencing.exceptions import NoSuchResource

    found: set[str] = set()
    waiting = [uri]
    while waiting:
        one = waiting.pop()
        if one in found:
            continue
        try:
            schema = _retrieve(one).contents
        except (NoSuchResource, StoreError):
            continue
        found.add(one)
        waiting += [urljoin(one, ref).partition("#")[0] for ref in _refs(schema)]
    return found


def _refs(value: Any) -> Iterator[str]:
    if isinstance(value, dict):
        ref = value.get("$ref")
        if isinstance(ref, str):
            yield ref
        value = list(value.values())
    if isinstance(value, list):
        for item in value:
            yield from _refs(item)


def _retrieve(uri: str) -> Resource[Any]:
    from referencing.exceptions import NoSuchResource
    from referencing.jsonschema import DRAFT202012

    if not (uri.startswith(_BASE_URI) and uri.endswith(".json")):
        raise NoSuchResource(uri)
    schema = load(uri.removeprefix(_BASE_URI).removesuffix(".json"))
    # With its $schema, jsonschema would go on with the usual validator instead of ours.
    own = {k: v for k, v in schema.items() if k not in ("$id", "$schema")}
    return DRAFT202012.create_resource(own)


def _positions(document: object) -> Callable[[ValidationError], tuple[int, ...]]:
    """Where an error stands in the document: the rank of each step of its path among its siblings.

    Ranks are kept per container, so that many errors in one large object stay cheap to sort.
    """
    ranks: dict[int, dict[Any, int]] = {}

    def position(error: ValidationError) -> tuple[int, ...]:
        place: Any = document
        found = []
        for step in error.absolute_path:
            if isinstance(place, dict):
                if id(place) not in ranks:
                    ranks[id(place)] = {key: rank for rank, key in enumerate(place)}
                found.append(ranks[id(place)][step])
            else:
                found.append(int(step))
            place = place[step]
        return tuple(found)

    return position


# --- sentences --------------------------------------------------------------------------------


def _sentences(error: ValidationError) -> Iterator[str]:
    """Sentences of one error of jsonschema; the fields that it lumps together are taken apart."""
    path = list(error.absolute_path)
    keyword: Any = error.validator
    if "propertyNames" in list(error.schema_path)[:-1]:
        yield _at(path, f"the field name {_show(error.instance)} is not allowed")
    elif keyword == "required":
        yield from (_at(path, f"missing the field {_show(key)}") for key in _missing(error))
    elif keyword in ("additionalProperties", "unevaluatedProperties"):
        yield from (_at([*path, key], "unknown field") for key in _unknown(error))
    elif keyword in ("anyOf", "oneOf"):
        yield from _alternatives(error)
    elif keyword is None:  # the schema `false`, for which jsonschema keeps no path
        yield _at(path, f"got {_show(error.instance)}, which is not allowed")
    else:
        yield _at(path, f"got {_show(error.instance)}, expected {_expected(error)}")


def _missing(error: ValidationError) -> list[str]:
    wanted: Any = error.validator_value
    instance: Any = error.instance
    return [key for key in wanted if key not in instance]


def _unknown(error: ValidationError) -> list[str]:
    """The keys of the instance that the object's schema does not know."""
    instance: Any = error.instance
    schema: Any = error.schema
    if error.validator == "unevaluatedProperties":  # only the message knows which they are
        return [key for key in instance if repr(key) in error.message]
    patterns = "|".join(f"(?:{pattern})" for pattern in schema.get("patternProperties", ())) or "$^"
    known = schema.get("properties", {})
    return [key for key in instance if key not in known and not re.search(patterns, key)]


def _alternatives(error: ValidationError) -> Iterator[str]:
    """Sentences of the branch that comes nearest to the instance, or the choice between types."""
    branches: dict[Any, list[ValidationError]] = {}
    for inner in error.context or ():
        branches.setdefault(inner.schema_path[0], []).append(inner)
    if not branches:
        expected = "exactly one of the forms that the schema allows; it matches several"
        yield _at(list(error.absolute_path), f"got {_show(error.instance)}, expected {expected}")
        return
    inside = [found for found in branches.values() if not any(_at_its_root(e) for e in found)]
    if inside:
        for inner in min(inside, key=_distance):
            yield from _sentences(inner)
        return
    choices = dict.fromkeys(_expected(e) for found in branches.values() for e in found[:1])
    got = _show(error.instance)
    yield _at(list(error.absolute_path), f"got {got}, expected {' or '.join(choices)}")


def _at_its_root(error: ValidationError) -> bool:
    """True if the branch does not fit the instance at all, as opposed to something within it."""
    return not error.path and error.validator in ("type", "const", "enum", "not", None)


def _distance(branch: list[ValidationError]) -> tuple[int, int]:
    """A branch whose constant fields differ is another kind of thing, however few its errors."""
    return sum(error.validator in ("const", "enum") for error in branch), len(branch)


def _expected(error: ValidationError) -> str:
    wanted: Any = error.validator_value
    phrase = _PHRASES.get(str(error.validator))
    return phrase(wanted) if phrase else f"a value that satisfies {error.validator} {_show(wanted)}"


_TYPES = {
    "array": "a list",
    "boolean": "true or false",
    "integer": "an integer",
    "null": "null",
    "number": "a number",
    "object": "an object",
    "string": "a string",
}


def _types(wanted: str | Sequence[str]) -> str:
    names = [wanted] if isinstance(wanted, str) else wanted
    return " or ".join(_TYPES.get(name, name) for name in names)


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


_PHRASES: dict[str, Callable[[Any], str]] = {
    "type": _types,
    "enum": lambda wanted: "one of " + ", ".join(_show(value) for value in wanted),
    "const": lambda wanted: _show(wanted),
    "minimum": lambda wanted: f"at least {wanted}",
    "maximum": lambda wanted: f"at most {wanted}",
    "exclusiveMinimum": lambda wanted: f"more than {wanted}",
    "exclusiveMaximum": lambda wanted: f"less than {wanted}",
    "multipleOf": lambda wanted: f"a multiple of {wanted}",
    "pattern": lambda wanted: f"a string matching {wanted}",
    "format": lambda wanted: f"a string in the format {wanted}",
    "minLength": lambda wanted: f"at least {_count(wanted, 'character')}",
    "maxLength": lambda wanted: f"at most {_count(wanted, 'character')}",
    "minItems": lambda wanted: f"at least {_count(wanted, 'item')}",
    "maxItems": lambda wanted: f"at most {_count(wanted, 'item')}",
    "uniqueItems": lambda _: "no item twice",
    "minProperties": lambda wanted: f"at least {_count(wanted, 'field')}",
    "maxProperties": lambda wanted: f"at most {_count(wanted, 'field')}",
    "not": lambda _: "something else",
}


def _at(path: Sequence[str | int], sentence: str) -> str:
    """`files[0].sha256: sentence`; just the sentence for the document itself."""
    text = ""
    for step in path:
        if isinstance(step, str) and _PLAIN_KEY.fullmatch(step):
            text += f".{step}" if text else step
        else:
            text += f"[{_show(step)}]"
    return f"{text}: {sentence}" if text else sentence


def _show(value: object) -> str:
    """A value as JSON on one line, cut, with nothing in it that could steer a terminal."""
    if isinstance(value, dict):
        return f"an object with {_count(len(value), 'field')}"
    if isinstance(value, (list, tuple)):
        return f"a list of {_count(len(value), 'item')}"
    if isinstance(value, str):
        value = value[: MAX_VALUE_CHARS + 1]
    text = json.dumps(value, ensure_ascii=False, default=repr)
    if len(text) > MAX_VALUE_CHARS:
        text = text[: MAX_VALUE_CHARS - 1] + "…"
    return "".join(char if char.isprintable() else f"\\u{ord(char):04x}" for char in text)
