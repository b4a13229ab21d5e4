"""`adapterhub compose` as a user meets it."""

from __future__ import annotations

import json
from pathlib import Path

from click.testing import CliRunner
from composing_building import lora

from adapterhub.cli import main


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
