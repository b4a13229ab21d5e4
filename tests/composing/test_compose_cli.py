"""`adapterhub compose` as a user meets it."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from click.testing import CliRunner
from composing_building import SIZES, Q, V, lora
from safetensors.numpy import load_file, save_file

from adapterhub.cli import main
from adapterhub.composing.methods.table import TABLE
from adapterhub.composing.sites import apart


def run(home: Path, *args: object, code: int = 0) -> str:
    result = CliRunner(env={"ADAPTERHUB_HOME": str(home)}).invoke(main, [str(arg) for arg in args])
    assert result.exit_code == code, result.output
    return result.output


def test_from_paths_to_a_version_with_its_lineage(tmp_path: Path) -> None:
    a, b, home = lora(tmp_path / "a", 1), lora(tmp_path / "b", 2), tmp_path / "home"
    run(home, "add", a, "--name", "a")
    said = run(home, "compose", "a=0.5", f"{b}=-1", "--name", "both")
    assert "composed both@sha256:" in said and "on every machine" in said
    shown = json.loads(run(home, "show", "both", "--json"))["result"]["manifest"]
    assert shown["lineage"]["operation"] == "compose"
    first, second = shown["lineage"]["inputs"]
    assert first["digest"].startswith("sha256:") and first["weight"] == 0.5
    assert "digest" not in second and second["weights_root"].startswith("sha256:")
    origin = json.loads(run(home, "show", "both", "--json"))["result"]["origin"]
    assert origin == {"operation": "compose", "inputs": [f"a@{first['digest']}", str(b)]}
    # the same again is the same version, from another home too
    again = run(tmp_path / "other", "add", a, "--name", "a")
    assert "added" in again
    run(tmp_path / "other", "compose", "a=0.5", f"{b}=-1", "--name", "both", "-q")
    one, other = (run(place, "list", "-q") for place in (home, tmp_path / "other"))
    assert one == other


def test_what_it_refuses_leaves_nothing(tmp_path: Path) -> None:
    a, home, out = lora(tmp_path / "a", 1), tmp_path / "home", tmp_path / "out"
    for wrong in (
        ("-m", "sums"),
        ("-p", "density=0.5"),
        ("--energy", "1.5"),
        ("--rank", "0"),
        ("--whole", "nobody"),
    ):
        run(home, "compose", a, "--out", out, *wrong, code=1)
        assert not out.exists()
    run(home, "compose", a, code=1)
    run(home, "compose", a, "--out", out, "--name", "x", code=1)
    run(home, "compose", "--out", out, code=2)
    run(home, "compose", a, "--out", out, "-p", "density", code=2)
    out.mkdir()
    (out / "mine").write_text("here")
    run(home, "compose", a, "--out", out, code=1)
    assert [path.name for path in out.iterdir()] == ["mine"]


def test_methods_are_listed(tmp_path: Path) -> None:
    assert "task_arithmetic" in run(tmp_path, "compose", "--methods")
    rows = json.loads(run(tmp_path, "compose", "--methods", "--json"))["result"]
    assert {"sum", "average"} <= {row["name"] for row in rows}


def test_the_list_of_methods_fits_a_page(tmp_path: Path) -> None:
    said = run(tmp_path, "compose", "--methods")
    assert max(map(len, said.splitlines())) <= 80
    for row in TABLE.values():
        assert row.name in said and row.title in said and row.note in said
        for parameter in row.parameters:
            assert f"\n{parameter.name} " in said and parameter.help in said


def test_what_truncation_kept_is_said_as_it_was_asked_for(tmp_path: Path) -> None:
    a, home = lora(tmp_path / "a", 1, rank=6), tmp_path / "home"
    said = run(home, "compose", a, "--out", tmp_path / "cut", "--energy", "0.9")
    kept = re.search(r"keeps ([\d.]+)% of the energy, loses ([\d.]+)% of the norm", said)
    assert kept is not None
    energy, lost = (float(figure) / 100 for figure in kept.groups())
    assert 0.9 <= energy < 1 and abs(1 - lost**2 - energy) < 1e-3
    assert "energy kept  norm lost" in said
    # what is kept whole has no table of what was lost
    whole = run(home, "compose", a, "--out", tmp_path / "whole", "--rank", "6")
    assert "nothing lost" in whole and "norm lost" not in whole


def test_a_density_of_1_is_said_to_drop_nothing(tmp_path: Path) -> None:
    a, b, home = lora(tmp_path / "a", 1), lora(tmp_path / "b", 2), tmp_path / "home"
    for method, density, noted in (("dare_linear", 1, True), ("ties", 0.5, False)):
        out = tmp_path / method
        said = run(home, "compose", a, b, "-m", method, "-p", f"density={density}", "--out", out)
        assert ("no element is dropped" in said) is noted


def test_switches_are_taken_as_they_are_printed(tmp_path: Path) -> None:
    a, b, home = lora(tmp_path / "a", 1), lora(tmp_path / "b", 2), tmp_path / "home"
    said = run(home, "compose", a, b, "-m", "ties", "-p", "normalize=no", "--out", tmp_path / "out")
    assert "normalize: no" in said


def test_errors_name_versions_briefly_and_weights_as_weights(tmp_path: Path) -> None:
    a, home = lora(tmp_path / "a", 1, use_dora=False), tmp_path / "home"
    run(home, "add", a, "--name", "a")
    said = run(home, "compose", "a", "a", "a", "-m", "slerp", "--out", tmp_path / "x", code=1)
    assert "slerp takes 2 adapters, 3 were given" in said and "compose --methods" in said
    other = lora(tmp_path / "b", 2, base_model_name_or_path="owner/other")
    run(home, "add", other, "--name", "b")
    said = run(home, "compose", "a", "b", "--out", tmp_path / "x", code=1)
    assert re.search(r"a@sha256:[0-9a-f]{12} is for owner/base", said)
    assert "the weight of a is 'half'" in run(home, "compose", "a=half", "--name", "x", code=2)
    said = run(home, "compose", "a", code=1)
    assert "--name NAME for the registry, or --out DIR for a new directory" in said


def test_a_seed_decides_only_what_is_dropped_by_chance(tmp_path: Path) -> None:
    """Else the recipe that `show` prints, which has no seed for ties, made something else."""
    a, b, home = lora(tmp_path / "a", 1), lora(tmp_path / "b", 2), tmp_path / "home"
    made = {}
    for method in ("ties", "dare_linear"):
        for seed in (0, 7):
            out = tmp_path / f"{method}-{seed}"
            options = ("-m", method, "-p", "density=0.5", "--rank", 2, "--seed", seed)
            run(home, "compose", a, b, *options, "--out", out)
            made[method, seed] = (out / "adapter_model.safetensors").read_bytes()
    assert made["ties", 0] == made["ties", 7]
    assert made["dare_linear", 0] != made["dare_linear", 7]


def test_one_model_in_two_spellings_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in (Q, V):
        monkeypatch.setitem(SIZES, f"wrapper.{name}", SIZES[name])
    a, home = lora(tmp_path / "a", 1), tmp_path / "home"
    b = lora(tmp_path / "b", 2, [f"wrapper.{Q}", f"wrapper.{V}"])
    said = run(home, "compose", a, b, "--out", tmp_path / "out", code=1)
    assert "spell its modules differently" in said and "adapterhub merge BASE" in said
    assert f"{Q} in {a}" in said and f"wrapper.{Q} in {b}" in said
    assert not (tmp_path / "out").exists()
    said = run(home, "compare", a, b)
    assert "not compared, though it may be one module" in said


def test_only_layers_of_adapters_with_nothing_in_common_are_spelled_apart() -> None:
    assert apart([{"layer.0.q"}, {"x.layer.0.q"}]) == (0, 1, "layer.0.q", "x.layer.0.q")
    assert apart([{"x.layer.0.q"}, {"layer.0.q"}]) == (1, 0, "layer.0.q", "x.layer.0.q")
    assert apart([{"proj"}, {"x.proj"}]) is None
    assert apart([{"layer.0.q"}, {"xlayer.0.q", "layer.0.k"}]) is None
    assert apart([{"layer.0.q", "layer.0.k"}, {"x.layer.0.q", "layer.0.k"}]) is None
    assert apart([set(), {"layer.0.q"}]) is None


def test_an_error_says_which_of_the_adapters_it_means(tmp_path: Path) -> None:
    a, b = lora(tmp_path / "a", 1), lora(tmp_path / "b", 2)
    file = b / "adapter_model.safetensors"
    tensors = load_file(file)
    next(iter(tensors.values()))[0, 0] = float("nan")
    save_file(tensors, file, {"format": "pt"})
    for command in (("compose", a, b, "--name", "x"), ("compare", a, b)):
        said = run(tmp_path / "home", *command, code=1)
        assert f"error: {b}: " in said and "NaN" in said
