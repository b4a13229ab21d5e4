"""`adapterhub compose` as a user meets it."""

from __future__ import annotations

import json
import re
from pathlib import Path

from click.testing import CliRunner
from composing_building import lora

from adapterhub.cli import main
from adapterhub.composing.table import TABLE


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
    assert max(map(len, said.splitlines())) <= 100
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
