"""What compose says to somebody who is new to it: mistakes, notes, what became of what."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
from composing_building import SIZES, lora
from safetensors.numpy import load_file, save_file
from test_compose_cli import run


@pytest.mark.parametrize(
    ("wrong", "near"),
    [("TIES", "ties"), ("dare", "dare_linear"), ("avrage", "average")],
)
def test_an_unknown_method_is_answered_by_the_nearest(
    tmp_path: Path, wrong: str, near: str
) -> None:
    a = lora(tmp_path / "a", 1)
    said = run(tmp_path / "home", "compose", a, "-m", wrong, "--name", "x", code=1)
    assert f"did you mean {near}" in said and "compose --methods lists them" in said


def test_a_method_that_nothing_is_like_is_answered_by_the_list(tmp_path: Path) -> None:
    a = lora(tmp_path / "a", 1)
    said = run(tmp_path / "home", "compose", a, "-m", "mean", "--name", "x", code=1)
    assert "did you mean" not in said and "compose --methods lists them" in said


def test_a_parameter_that_is_not_there(tmp_path: Path) -> None:
    a, home = lora(tmp_path / "a", 1), tmp_path / "home"
    said = run(home, "compose", a, "-p", "density=0.5", "--name", "x", code=1)
    assert "sum has no parameter 'density'" in said and "leave it away: it has none" in said
    said = run(home, "compose", a, "-m", "ties", "-p", "dens=1", "--name", "x", code=1)
    assert "its parameters: density, lambda" in said


def test_switches_are_taken_in_any_case(tmp_path: Path) -> None:
    a, home = lora(tmp_path / "a", 1), tmp_path / "home"
    said = run(home, "compose", a, "-m", "ties", "-p", "rescale=True", "--name", "x")
    assert "rescale: yes" in said


def test_a_wrong_weight_is_answered_with_the_adapter_s_own_name(tmp_path: Path) -> None:
    said = run(tmp_path / "home", "compose", "ner=half", "--name", "x", code=2)
    assert "the weight of ner is 'half': a number is needed, as in ner=0.5" in said


def test_a_cut_that_nobody_asked_for_is_noted(tmp_path: Path) -> None:
    a, b, home = lora(tmp_path / "a", 1, rank=1), lora(tmp_path / "b", 2, rank=1), tmp_path / "home"
    options = ("-m", "ties", "-p", "density=0.5")
    note = "what ties makes has no low rank, and was cut to the ranks of the adapters added up"
    assert note in run(home, "compose", a, b, *options, "--name", "x")
    assert note not in run(home, "compose", a, b, *options, "--rank", 1, "--name", "x")
    # nothing of a sum is cut, nor of what lies between two low ranks
    assert "low rank" not in run(home, "compose", a, b, "--name", "x")
    assert "low rank" not in run(home, "compose", a, b, "-m", "slerp", "--name", "x")


def test_what_is_saved_whole_is_listed(tmp_path: Path) -> None:
    home = tmp_path / "home"
    for seed, name in enumerate("ab"):
        path = lora(tmp_path / name, seed, modules_to_save=["classifier"]) / (
            "adapter_model.safetensors"
        )
        head = np.full((2, 8), seed, np.float32)
        tensors = {**load_file(path), "base_model.model.classifier.weight": head}
        save_file(tensors, path, {"format": "pt"})
    both = (tmp_path / "a", tmp_path / "b")
    said = run(home, "compose", *both, "--whole", "average", "--name", "x")
    assert "saved whole  classifier.weight" in said


def test_weights_by_module_are_not_told_as_one(tmp_path: Path) -> None:
    a, b = lora(tmp_path / "a", 1), lora(tmp_path / "b", 2)
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(
        f"merge_method: sum\nmodels:\n  - model: {a}\n    parameters:\n"
        f"      weight: [{{filter: q_proj, value: 0.5}}, {{value: 2}}]\n  - model: {b}\nname: x\n"
    )
    said = run(tmp_path / "home", "compose", "--recipe", recipe)
    assert f"{a} × by module" in said and f"{b} × 1" in said


# --- recipes ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "said", "remedy"),
    [
        (
            "method: ties\nmodels: [{model: a}]\n",
            "method: unknown field",
            "a recipe has merge_method",
        ),
        ("", "is empty", "models is a list of `model: ADAPTER`"),
        (
            "models:\n  - model: a\n - model: b\n",
            "line 3, column 2: expected",
            "begin in one column",
        ),
        ("models:\n\t- model: a\n", "line 2, column 1: found character", "and not by tabs"),
        ("name: a\nrank: 4\nname: b\n", "line 3, column 1: the key name stands twice", ""),
        ("name: a\nrank: 010\n", "line 2, column 7: the number 010", ""),
    ],
)
def test_mistakes_in_a_recipe_are_told_with_their_place_and_what_there_is(
    tmp_path: Path, text: str, said: str, remedy: str
) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(text)
    found = run(tmp_path / "home", "compose", "--recipe", recipe, code=1)
    assert said in found and remedy in found and ("→" in found) is bool(remedy)


def test_a_filter_that_holds_for_no_module_is_noted(tmp_path: Path) -> None:
    a, b = lora(tmp_path / "a", 1), lora(tmp_path / "b", 2)
    recipe = tmp_path / "recipe.yaml"
    for filter, noted in (("mlp", True), ("v_proj", False)):
        recipe.write_text(
            f"merge_method: sum\nmodels: [model: {a}, model: {b}]\n"
            f"rank: [{{filter: {filter}, value: 2}}, {{value: 3}}]\nname: x\n"
        )
        found = run(tmp_path / "home", "compose", "--recipe", recipe)
        assert ('no module fits the filter "mlp"' in found) is noted


def test_show_names_the_adapters_that_went_in(tmp_path: Path) -> None:
    a, home = lora(tmp_path / "a", 1), tmp_path / "home"
    run(home, "add", a, "--name", "ner")
    run(home, "compose", "ner=0.5", a, "--name", "both")
    shown = run(home, "show", "both")
    assert re.search(rf"made by +compose of ner@sha256:[0-9a-f]{{12}} × 0.5, {a}\n", shown)
    run(home, "resize", "ner", "--rank", 2, "--name", "small")
    shown = run(home, "show", "small")
    assert re.search(r"made by +resize of ner@sha256:[0-9a-f]{12}; rank: 2\n", shown)


def test_an_adapter_that_cannot_be_read_as_a_sum_is_named(tmp_path: Path) -> None:
    a, home = lora(tmp_path / "a", 1, init_lora_weights="pissa"), tmp_path / "home"
    said = run(home, "compose", lora(tmp_path / "b", 2), a, "--name", "x", code=1)
    assert f"error: {a}: init_lora_weights is 'pissa'" in said
    said = run(home, "resize", a, "--rank", 1, "--name", "x", code=1)
    assert f"there is no LoRA of {a}: init_lora_weights is 'pissa'" in said
    assert "or merge it into the changed base" in said  # which resize has no option for


def test_all_modules_that_are_refused_are_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    modules = [f"model.layers.{n}.self_attn.q_proj" for n in range(30)]
    for module in modules:
        monkeypatch.setitem(SIZES, module, (4, 8))
    path = lora(tmp_path / "a", 1, modules, use_dora=True)
    file = path / "adapter_model.safetensors"
    magnitudes = {
        f"base_model.model.{module}.lora_magnitude_vector": np.ones(4, np.float32)
        for module in modules
    }
    save_file({**load_file(file), **magnitudes}, file, {"format": "pt"})
    said = run(tmp_path / "home", "resize", path, "--rank", 1, "--name", "x", code=1)
    assert "model.layers.*.self_attn.q_proj (30 of them)" in said


def test_options_that_a_recipe_has_are_named_as_they_are_typed(tmp_path: Path) -> None:
    options = ("-p", "density=0.5", "--rank", 2)
    said = run(tmp_path, "compose", "--recipe", tmp_path / "recipe.yaml", *options, code=2)
    assert "leave --rank, -p away" in said


def test_a_recipe_with_adapters_that_came_from_paths_says_what_to_put_there(tmp_path: Path) -> None:
    a, b, home = lora(tmp_path / "a", 1), lora(tmp_path / "b", 2), tmp_path / "home"
    run(home, "add", a, "--name", "ner")
    run(home, "compose", "ner", b, "--name", "both")
    recipe = tmp_path / "recipe.yaml"
    shown = run(home, "show", "both")
    recipe.write_text(re.sub("(?m)^  ", "", shown[shown.index("  merge_method") :]))
    said = run(home, "compose", "--recipe", recipe, "--name", "again", code=1)
    assert "came from a path and are in no registry" in said and "adapter_root sha256:" in said
    recipe.write_text(re.sub("adapter_root sha256:[0-9a-f]+", str(b), recipe.read_text()))
    run(home, "compose", "--recipe", recipe, "--name", "again")
    one, other = (run(home, "show", name, "-q").partition("@")[2] for name in ("both", "again"))
    assert one == other


def test_notes_name_versions_briefly(tmp_path: Path) -> None:
    a, home = lora(tmp_path / "a", 1), tmp_path / "home"
    run(home, "add", a, "--name", "ner")
    b = lora(tmp_path / "b", 2, base_model_name_or_path="owner/other")
    said = run(home, "compose", "ner", b, "--force-base", "--name", "both")
    assert re.search("forced: ner@sha256:[0-9a-f]{12} is for owner/base", said)
