"""Recipes: a composition as a YAML file, and the file for a composition that was made.

merge_method: ties
models:
  - model: ner
    parameters: {weight: 0.7}
  - model: runs/topics
    parameters: {weight: [{filter: v_proj, value: 0.2}, {value: 0.3}]}
parameters: {density: 0.5}
rank: 16
seed: 1
name: both
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from adapterhub import schema
from adapterhub.composing.cases import Cases, checked, parsed, plain
from adapterhub.composing.methods.table import method
from adapterhub.errors import InvalidOption, NotFound, SchemaError
from adapterhub.formats.card import trick

LIMIT_BYTES = 64 * 1024
_BY_ROOT = "adapter_root "  # before a digest that no registry finds an adapter by
_SPACES = "entries of one list or mapping begin in one column, indented by spaces and not by tabs"
_NUMBER = re.compile(
    r"[-+]?(?:(?:0|[1-9][0-9]{0,39})(?:\.[0-9]{0,40})?|\.[0-9]{1,40})(?:[eE][-+]?[0-9]{1,4})?\Z"
)


@dataclass(frozen=True)
class Recipe:
    """`models`: each ADAPTER and its weight, a number or Cases."""

    method: str
    models: tuple[tuple[str | Path, float | Cases], ...]
    parameters: Mapping[str, Any]
    base_model: str | None = None
    rank: int | Cases | None = None
    energy: float | Cases | None = None
    whole: str = "refuse"
    seed: int = 0
    name: str | None = None
    out: str | None = None


def read(path: Path) -> Recipe:
    """Raises NotFound, SchemaError with all that is wrong, InvalidOption."""
    try:
        with path.open("rb") as file:
            data = file.read(LIMIT_BYTES + 1)
    except OSError as error:
        raise NotFound(
            f"{path} cannot be read: {error.strerror}", remedy="check the path"
        ) from error
    if len(data) > LIMIT_BYTES:
        raise SchemaError(f"{path} is larger than 64 KiB", remedy="a recipe is shorter")
    return parse(_document(data, str(path)), what=str(path))


def parse(document: object, *, what: str) -> Recipe:
    """A recipe from what its YAML says. Raises as `read`."""
    if document is None:
        raise SchemaError(f"{what} is empty", remedy=_shape())
    if found := schema.problems(document, "recipe"):
        raise SchemaError(f"{what} is no recipe as it stands", details=found, remedy=_shape())
    told: Mapping[str, Any] = document  # type: ignore[assignment]
    _refuse_nameless([row["model"] for row in told["models"]], what)
    parameters = _parameters(told, what)
    return Recipe(
        method=method(told["merge_method"]).name,
        models=tuple((row["model"], _weight(row)) for row in told["models"]),
        parameters=parameters,
        base_model=told.get("base_model"),
        rank=checked(parsed(told.get("rank")), _whole_number),
        energy=parsed(told.get("energy")),
        whole=told.get("whole", "refuse"),
        seed=int(told.get("seed", 0)),
        name=told.get("name"),
        out=told.get("out"),
    )


def _shape() -> str:
    """What a recipe is made of, for somebody who got it wrong."""
    keys = ", ".join(schema.load("recipe")["properties"])
    return (
        f"a recipe has {keys}; models is a list of `model: ADAPTER`, each with "
        "`parameters: {weight: 0.5}` where it has a weight"
    )


def _refuse_nameless(models: Sequence[str], what: str) -> None:
    """Raises NotFound for adapters of which `show` could tell no more than what they hold."""
    if nameless := [model for model in models if model.startswith(_BY_ROOT)]:
        raise NotFound(
            f"{what} names adapters that came from a path and are in no registry",
            details=nameless,
            remedy="put names or paths in their places: those with the same adapter root",
        )


def _whole_number(value: float | None) -> int | None:
    """4.0 is an integer to JSON Schema."""
    return None if value is None else int(value)


def _weight(row: Mapping[str, Any]) -> Any:
    return parsed(row.get("parameters", {}).get("weight", 1.0))


def _parameters(found: Mapping[str, Any], what: str) -> dict[str, Any]:
    """The method's own; those that stand with the models must be the same for all of them."""
    given = {key: parsed(value) for key, value in found.get("parameters", {}).items()}
    rows = [row.get("parameters", {}) for row in found["models"]]
    for key in sorted({key for row in rows for key in row} - {"weight"}):
        values = [row.get(key) for row in rows]
        if any(value != values[0] for value in values) or given.get(key, parsed(values[0])) != (
            parsed(values[0])
        ):
            raise InvalidOption(
                f"{what}: {key} differs between the models, and {found['merge_method']} takes one "
                "for all",
                remedy=f"give {key} once, under the recipe's own parameters",
            )
        given[key] = parsed(values[0])
    return given


def _document(data: bytes, what: str) -> object:
    import yaml

    try:
        text = data.decode("utf-8")
        if why := trick(text):
            raise SchemaError(f"{what} {why}", remedy="write it plainly")
        return yaml.load(text, _loader())
    except (yaml.YAMLError, ValueError) as error:
        is_form = isinstance(error, yaml.scanner.ScannerError | yaml.parser.ParserError)
        raise SchemaError(
            f"{what} is not valid YAML: {_where(error)}", remedy=_SPACES if is_form else ""
        ) from error


def _loader() -> Any:
    import yaml

    class Loader(yaml.SafeLoader):
        """Refuses a key that stands twice, of which YAML would silently take the last, or is no
        text, and numbers that are not what they look like: 010 is 8 to YAML, 1:20 is 80, and 1e-3
        a text, 1e-400 nothing."""

        def construct_number(self, node: Any) -> int | float:
            text = self.construct_scalar(node)
            if not _NUMBER.match(text):
                raise yaml.constructor.ConstructorError(
                    None,
                    None,
                    f"the number {text[:40]}: give it in decimal digits",
                    node.start_mark,
                )
            if text.lstrip("+-").isdecimal():
                return int(text)
            if vanishes(text):
                raise yaml.constructor.ConstructorError(
                    None, None, f"the number {text[:40]} is too small", node.start_mark
                )
            return float(text)

        def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
            seen: set[str] = set()
            for key, _ in node.value:
                if str(key.value) in seen:
                    raise yaml.constructor.ConstructorError(
                        None, None, f"the key {key.value} stands twice", key.start_mark
                    )
                seen.add(str(key.value))
            found = super().construct_mapping(node, deep)
            if odd := [key for key in found if not isinstance(key, str)]:
                raise yaml.constructor.ConstructorError(
                    None, None, f"the key {odd[0]!r:.40} is no text", node.start_mark
                )
            return found

    for kind in ("int", "float"):
        Loader.add_constructor(f"tag:yaml.org,2002:{kind}", Loader.construct_number)
    Loader.add_implicit_resolver("tag:yaml.org,2002:float", _NUMBER, list("-+.0123456789"))
    return Loader


def _where(error: Exception) -> str:
    """Line, column and what is wrong there, of one of YAML's errors."""
    mark, problem = getattr(error, "problem_mark", None), getattr(error, "problem", None)
    if mark is None or problem is None:
        return " ".join(str(error).split())[:200]
    return f"line {mark.line + 1}, column {mark.column + 1}: {' '.join(problem.split())[:200]}"


def vanishes(text: str) -> bool:
    """Whether a number in decimal digits is not 0, and would silently become it."""
    return float(text) == 0 and any(digit in "123456789" for digit in re.split("[eE]", text)[0])


# --- from a lineage ---------------------------------------------------------------------------


def recipe_of(lineage: Mapping[str, Any]) -> dict[str, Any] | None:
    """The recipe that made a version, by its lineage; None for what no recipe makes.

    A stranger's lineage may claim to be a composition and hold anything: that is None, too.
    """
    if lineage.get("operation") != "compose":
        return None
    try:
        found = _recipe_of(lineage)
        too_long = len(json.dumps(found)) > LIMIT_BYTES
    except (AttributeError, IndexError, KeyError, TypeError, ValueError, RecursionError):
        return None
    return None if too_long or schema.problems(found, "recipe") else found


def _recipe_of(lineage: Mapping[str, Any]) -> dict[str, Any]:
    told = lineage["parameters"]
    weights = told.get("weights", {})
    found = {
        "merge_method": told["method"],
        "models": [
            _model(each, weights.get(str(number), each.get("weight", 1.0)))
            for number, each in enumerate(lineage["inputs"])
        ],
        "parameters": told["parameters"],
        "rank": told["rank"],
        "energy": told["energy"],
        "whole": _chosen(told["whole"], lineage["inputs"]),
        "seed": told.get("seed"),
    }
    return {key: value for key, value in found.items() if value not in (None, {}, "refuse")}


def _model(source: Mapping[str, Any], weight: Any) -> dict[str, Any]:
    return {"model": _digest(source), "parameters": {"weight": weight}}


def _digest(source: Mapping[str, Any]) -> str:
    """An adapter that came from a path is in no registry: its adapter_root at least says which."""
    return str(source.get("digest") or f"{_BY_ROOT}{source['weights_root']}")


def _chosen(whole: Any, inputs: Sequence[Mapping[str, Any]]) -> Any:
    return _digest(inputs[whole]) if isinstance(whole, int) else whole


def to_yaml(recipe: Mapping[str, Any]) -> str:
    """The text of a recipe, which `read` takes."""
    import yaml

    text: str = yaml.safe_dump(
        plain(dict(recipe)), sort_keys=False, allow_unicode=True, default_flow_style=None
    )
    return text
