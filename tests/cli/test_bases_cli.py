from __future__ import annotations

from pathlib import Path

from clikit import Run


def test_base_add_list_show_rm(run: Run, base: Path) -> None:
    said = run("base", "add", base)
    assert said.out.startswith("registered minibert: sha256:")
    assert run("base", "list", "-q").out == "minibert\n"
    row = run("base", "list").lines[1].split()
    assert (row[0], row[-1]) == ("minibert", str(base))
    record = run("base", "show", "minibert", "--json").json["result"]
    assert record["path"] == str(base)
    assert str(base) in run("base", "show", "minibert").out
    gone = run("base", "rm", "minibert")
    assert gone.out == f"forgot minibert; its files stay at {base}\n"
    assert "base add DIR" in run("base", "list").err
    assert run("base", "show", "minibert", "--json").json["error"]["code"] == "not-found"


def test_errors_name_the_whole_command(run: Run) -> None:
    said = run("base", "add", "owner/absent", "--json")
    assert said.code == 1
    assert said.json["command"] == "base add"
    assert "hf download owner/absent" in said.json["error"]["remedy"]


def test_a_registered_name_serves_as_base(run: Run, adapter: Path, base: Path) -> None:
    run("base", "add", base, "--name", "mini", "-q")
    assert run("add", adapter, "--name", "a", "--base", "mini").code == 0
    assert run("base", "list", "-q").out == "mini\n"
