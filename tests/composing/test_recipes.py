"""Recipes: read, refused, run, and printed for what was made."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import dense_oracles as oracles
import numpy as np
import pytest
import yaml
from click.testing import CliRunner
from composing_building import SIZES, Q, V, assert_close, deltas, lora
from safetensors.numpy import load_file, save_file

from adapterhub import api
from adapterhub.cli import main
from adapterhub.composing.cases import Case, Cases
from adapterhub.composing.methods.table import method
from adapterhub.composing.recipe import parse, read, recipe_of, to_yaml
from adapterhub.composing.run import seed_of
from adapterhub.errors import AdapterHubError, BaseMismatch, InvalidOption, SchemaError
from adapterhub.formats import read as read_adapter
from adapterhub.registry import Registry


def recipe(tmp_path: Path, **changes: Any) -> Path:
    document = {
        "merge_method": "sum",
        "models": [
            {"model": str(tmp_path / "a"), "parameters": {"weight": 0.5}},
            {
                "model": str(tmp_path / "b"),
                "parameters": {"weight": [{"filter": "v_proj", "value": 2}, {"value": -1}]},
            },
        ],
        "out": str(tmp_path / "out"),
        **changes,
    }
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump({k: v for k, v in document.items() if v is not None}))
    return path


@pytest.fixture
def registry(tmp_path: Path) -> Any:
    with Registry(tmp_path / "home") as found:
        yield found


def test_a_recipe_does_what_its_options_do(tmp_path: Path, registry: Registry) -> None:
    a, b = (read_adapter(lora(tmp_path / n, s)).adapter for n, s in (("a", 1), ("b", 2)))
    assert a is not None and b is not None
    api.compose(recipe=recipe(tmp_path), registry=registry)
    made = read_adapter(tmp_path / "out").adapter
    assert made is not None
    expected = {
        Q: 0.5 * deltas(a)[Q] - deltas(b)[Q],
        V: 0.5 * deltas(a)[V] + 2 * deltas(b)[V],
    }
    assert_close(deltas(made), expected)


def test_show_prints_the_recipe_and_it_makes_the_same_again(tmp_path: Path) -> None:
    for name, seed in (("a", 1), ("b", 2)):
        lora(tmp_path / name, seed)

    def run(*args: object) -> str:
        result = CliRunner(env={"ADAPTERHUB_HOME": str(tmp_path / "home")}).invoke(
            main, [str(arg) for arg in args]
        )
        assert result.exit_code == 0, result.output
        return result.output

    for name in "ab":
        run("add", tmp_path / name, "--name", name)
    models = [
        {"model": "a", "parameters": {"weight": 0.5}},
        {"model": "b", "parameters": {"weight": [{"filter": "v_proj", "value": 2}]}},
    ]
    path = recipe(tmp_path, models=models, rank=[{"filter": "q_proj", "value": 2}], out=None)
    version = run("compose", "--recipe", path, "--name", "both", "-q").strip()
    shown = run("show", "both")
    assert "made by this recipe" in shown and "merge_method: sum" in shown
    told = json.loads(run("show", "both", "--json"))["result"]["recipe"]
    (tmp_path / "again.yaml").write_text(yaml.safe_dump(told))
    again = run("compose", "--recipe", tmp_path / "again.yaml", "--name", "again", "-q").strip()
    assert again.partition("@")[2] == version.partition("@")[2]


def test_cases_and_parameters_are_read(tmp_path: Path) -> None:
    found = read(recipe(tmp_path, rank=[{"filter": "q", "value": 4}], seed=7, whole="average"))
    assert found.models[1][1] == Cases((Case("v_proj", 2), Case(None, -1)))
    assert (found.seed, found.whole, found.rank) == (7, "average", Cases((Case("q", 4),)))


WHOLE_RECIPE = """
merge_method: dare_linear
base_model: owner/base
models:
  - model: a
    parameters: {weight: 0.7}
  - model: b
    parameters: {weight: [{filter: "*.1.*.v_proj", value: -2}, {value: 0.3}]}
parameters:
  density: [{filter: q_proj, value: 0.4}, {filter: v_proj, value: 0.8}]
  lambda: 1.5
rank: [{filter: q_proj, value: 5}]
energy: [{filter: v_proj, value: 0.9}]
whole: b
seed: 11
name: from/recipe
"""


def headed(path: Path, seed: int) -> Path:
    file = lora(path, seed, modules_to_save=["score"]) / "adapter_model.safetensors"
    head = {"base_model.model.score.weight": np.full((3, 8), seed, np.float32)}
    save_file({**load_file(file), **head}, file, {"format": "pt"})
    return path


def test_every_key_of_a_recipe_counts(tmp_path: Path, registry: Registry) -> None:
    for name, seed in (("a", 1), ("b", 2)):
        registry.add(headed(tmp_path / name, seed), name=name)
    (tmp_path / "recipe.yaml").write_text(WHOLE_RECIPE)
    made = api.compose(recipe=tmp_path / "recipe.yaml", registry=registry)
    assert made.version is not None and made.version.startswith("from/recipe@sha256:")
    adapter = registry.load("from/recipe").adapter
    both = [registry.load(name).adapter for name in "ab"]
    asked = method("dare_linear").settings({"lambda": 1.5})
    weights = {Q: [0.7, 0.3], V: [0.7, -2.0]}
    expected = {
        module: oracles.dare_linear(
            [deltas(each)[module] for each in both],
            weights[module],
            {**asked, "density": density},
            seed_of(11, module, 0),
        )
        for module, density in ((Q, 0.4), (V, 0.8))
    }
    u, s, vt = np.linalg.svd(expected[Q], full_matrices=False)
    expected[Q] = u[:, :5] * s[:5] @ vt[:5]
    u, s, vt = np.linalg.svd(expected[V], full_matrices=False)
    kept = int(np.searchsorted(np.cumsum(s**2) / np.sum(s**2), 0.9)) + 1
    expected[V] = u[:, :kept] * s[:kept] @ vt[:kept]
    assert 1 < kept < len(s)
    assert_close(deltas(adapter), expected, 1e-5)
    assert (adapter.modules["score"]["replace:weight"].read() == 2).all()


def test_the_recipe_that_is_shown_makes_the_same(tmp_path: Path, registry: Registry) -> None:
    for name, seed in (("a", 1), ("b", 2)):
        registry.add(headed(tmp_path / name, seed), name=name)
    (tmp_path / "recipe.yaml").write_text(WHOLE_RECIPE)
    made = api.compose(recipe=tmp_path / "recipe.yaml", registry=registry)
    told = registry.load("from/recipe")
    assert told.manifest is not None
    found = recipe_of(told.manifest["lineage"])
    assert found is not None
    digests = [registry.load(name).digest for name in "ab"]
    assert [each["model"] for each in found["models"]] == digests
    assert (found["whole"], found["seed"]) == (digests[1], 11)
    document = yaml.safe_load(WHOLE_RECIPE)
    for key in ("merge_method", "rank", "energy"):
        assert found[key] == document[key]
    assert found["parameters"].items() >= document["parameters"].items()
    (tmp_path / "again.yaml").write_text(to_yaml(found))
    again = api.compose(recipe=tmp_path / "again.yaml", name="again", registry=registry)
    assert again.version is not None and made.version is not None
    assert again.version.partition("@")[2] == made.version.partition("@")[2]


def test_a_recipe_s_base_is_known_by_its_digest(tmp_path: Path, registry: Registry) -> None:
    roots = {}
    for name, seed in (("one", 1), ("other", 2)):
        path = tmp_path / name
        path.mkdir()
        dice = np.random.default_rng(seed)
        weights = {f"{m}.weight": dice.standard_normal(shape) for m, shape in SIZES.items()}
        save_file({k: v.astype("f") for k, v in weights.items()}, path / "model.safetensors")
        (path / "config.json").write_text('{"model_type": "unheard-of"}')
        roots[name] = registry.base.add(path)["name"]
    registry.add(lora(tmp_path / "a", 1), name="a", base=tmp_path / "one")
    models = [{"model": "a", "parameters": {"weight": 2}}]
    wrong = recipe(tmp_path, models=models, base_model=roots["other"])
    with pytest.raises(BaseMismatch, match="the recipe is for") as error:
        api.compose(recipe=wrong, registry=registry)
    assert error.value.details[0].endswith("is for owner/base")
    assert not (tmp_path / "out").exists()
    api.compose(recipe=recipe(tmp_path, models=models, base_model=roots["one"]), registry=registry)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("merge_method: sum", "models"),
        ("merge_method: sum\nmodels: []", "models"),
        ("merge_method: sum\nmodels: [{model: a}]\nslices: []", "slices"),
        ("merge_method: sum\nmodels: [{model: a, parameters: {weight: [1, 2]}}]", "weight"),
        ("merge_method: sum\nmodels: [{model: a}]\nmodels: [{model: b}]", "stands twice"),
        ("a: &x [*x]", "aliases"),
        ("!!python/object/apply:os.system [true]", "not valid YAML"),
        ("{" * 5000, "YAML|nested"),
        ("- " * 100_000, "larger than 64 KiB"),
        ("\xff", "is no recipe"),
    ],
)
def test_what_is_no_recipe(tmp_path: Path, text: str, said: str) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(text)
    with pytest.raises(SchemaError) as error:
        read(path)
    assert re.search(said, f"{error.value} {' '.join(error.value.details)}")


def test_what_cannot_be_composed_so(tmp_path: Path, registry: Registry) -> None:
    for name, seed in (("a", 1), ("b", 2)):
        lora(tmp_path / name, seed)
    wrong: list[tuple[type[AdapterHubError], dict[str, Any]]] = [
        (InvalidOption, {"merge_method": "summ"}),
        (InvalidOption, {"parameters": {"density": 0.5}}),
        (InvalidOption, {"out": None}),
        (InvalidOption, {"rank": 0}),
        (InvalidOption, {"energy": [{"filter": "q", "value": 2}]}),
        (BaseMismatch, {"base_model": "owner/another"}),
    ]
    for kind, changes in wrong:
        with pytest.raises(kind):
            api.compose(recipe=recipe(tmp_path, **changes), registry=registry)
        assert not (tmp_path / "out").exists()
    api.compose(recipe=recipe(tmp_path, base_model="owner/base"), registry=registry)
    with pytest.raises(InvalidOption, match="names its adapters itself"):
        api.compose(["a"], recipe=recipe(tmp_path), registry=registry)


def test_a_parameter_that_differs_between_models_is_refused() -> None:
    models = [{"model": n, "parameters": {"density": d}} for n, d in (("a", 0.5), ("b", 0.3))]
    with pytest.raises(InvalidOption, match="density differs between the models"):
        parse({"merge_method": "sum", "models": models}, what="it")
    same = [{"model": n, "parameters": {"density": 0.5}} for n in "ab"]
    assert parse({"merge_method": "sum", "models": same}, what="it").parameters == {"density": 0.5}


@pytest.mark.parametrize(
    "lineage",
    [
        {"operation": "extract", "inputs": [], "parameters": {}},
        {"operation": "compose", "inputs": [], "parameters": {}},
        {"operation": "compose", "inputs": [{"role": "x"}], "parameters": {"method": "sum"}},
        {"operation": "compose", "inputs": [], "parameters": {"method": 7, "parameters": 3}},
    ],
)
def test_a_strangers_lineage_is_no_recipe(lineage: dict[str, Any]) -> None:
    assert recipe_of(lineage) is None
