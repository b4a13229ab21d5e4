"""Every command has its twin in the library, its help, and its line in the README."""

from __future__ import annotations

import inspect
import json
import re
import subprocess
import sys
from pathlib import Path

import click
import pytest
import regkit
from clikit import Run

from adapterhub import api
from adapterhub.cli import main
from adapterhub.hub.state.tokens import Tokens
from adapterhub.registry import Registry
from adapterhub.registry.bases import Bases

README = Path(__file__).parents[2] / "README.md"
LIGHT = ("torch", "transformers")
HEAVY = (*LIGHT, "bitsandbytes", "numpy", "jsonschema", "sqlite_utils", "rich", "regex", "yaml")


def walk(group: click.Group, path: tuple[str, ...] = ()) -> dict[tuple[str, ...], click.Command]:
    found: dict[tuple[str, ...], click.Command] = {}
    for name, command in group.commands.items():
        if isinstance(command, click.Group):
            found |= walk(command, (*path, name))
        else:
            found[(*path, name)] = command
    return found


COMMANDS = walk(main)


def test_the_commands_of_this_version() -> None:
    assert {" ".join(path) for path in COMMANDS} == {
        *("inspect", "add", "list", "search", "show", "path", "export", "diff"),
        *("edit", "mv", "rm", "tag", "untag", "history", "rollback"),
        *("verify", "gc", "reindex", "env", "merge", "methods", "formats"),
        *("compose", "compare", "resize", "extract"),
        *("push", "pull", "serve", "token create", "token list", "token revoke"),
        *("base add", "base list", "base show", "base rm", "base identify"),
    }


@pytest.mark.parametrize("path", COMMANDS, ids=" ".join)
def test_a_command_has_its_twin_in_the_library(path: tuple[str, ...]) -> None:
    rooms: dict[str, tuple[object, ...]] = {"base": (Bases,), "token": (Tokens,)}
    places = rooms.get(path[0], (Registry, api))
    twins = [getattr(place, path[-1]) for place in places if hasattr(place, path[-1])]
    assert any(inspect.isfunction(twin) for twin in twins)


@pytest.mark.parametrize("path", COMMANDS, ids=" ".join)
def test_a_command_has_help_and_every_option_too(path: tuple[str, ...], run: Run) -> None:
    command = COMMANDS[path]
    assert command.help
    assert command.help.split("\n")[0].rstrip()[-1] in ".?`"
    short = command.get_short_help_str(limit=70)
    assert not short.endswith("..."), short
    for parameter in command.params:
        if isinstance(parameter, click.Option) and parameter.name not in ("limit", "offset"):
            assert parameter.help or isinstance(parameter.type, click.Choice), parameter.name
    said = run(*path, "--help")
    assert said.code == 0
    assert said.out.startswith("Usage: ")


@pytest.mark.parametrize("path", COMMANDS, ids=" ".join)
def test_every_command_that_prints_prints_json(path: tuple[str, ...]) -> None:
    options = [option for parameter in COMMANDS[path].params for option in parameter.opts]
    assert "--json" in options


@pytest.mark.parametrize("path", COMMANDS, ids=" ".join)
def test_a_command_has_its_line_in_the_readme(path: tuple[str, ...]) -> None:
    text = README.read_text("utf-8")
    if path[0] == "base":
        named = re.search(rf"base\W+(\w+\W+)*?{path[1]}\b", text)
    else:
        cell = rf"^\|[^|]*`[^`|]*\b{path[0]}\b[^|]*\|"
        named = re.search(rf"adapterhub {path[0]}\b|{cell}", text, re.MULTILINE)
    assert named, f"README.md does not name adapterhub {' '.join(path)}"


# --- a light start ----------------------------------------------------------------------------


def imported_by(*args: str | Path) -> set[str]:
    """Names of all modules that a command imports."""
    done = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "adapterhub", *map(str, args)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr[-500:]
    lines = [line for line in done.stderr.splitlines() if line.startswith("import time:")]
    return {line.rpartition("|")[2].strip().partition(".")[0] for line in lines}


@pytest.mark.parametrize("args", [("--help",), ("--version",), ("merge", "--help")])
def test_help_imports_nothing_heavy(home: Path, args: tuple[str, ...]) -> None:
    found = imported_by(*args)
    assert "click" in found
    assert not found & set(HEAVY)
    assert not home.exists()


# Runs the commands of a list one after the other; after each prints what it has found imported.
IN_TURN = """
import json, sys
from adapterhub.cli import main
commands, watched = json.loads(sys.argv[1])
for command in commands:
    try:
        main(command, prog_name="adapterhub")
    except SystemExit as ended:
        assert not ended.code, command
    print(json.dumps(sorted(set(watched) & set(sys.modules))), file=sys.stderr)
"""


def test_registry_and_plain_merges_start_without_torch(
    home: Path, adapter: Path, base: Path, tmp_path: Path
) -> None:
    commands: tuple[tuple[str | Path, ...], ...] = (
        ("inspect", adapter),
        ("add", adapter, "--name", "a", "--base", base),
        ("list",),
        ("search", "a"),
        ("show", "a"),
        ("verify",),
        ("merge", base, "a", "--out", tmp_path / "m"),
        ("verify", tmp_path / "m"),
    )
    given = [[str(word) for word in command] for command in commands]
    arguments = json.dumps([given, (*LIGHT, "numpy")])
    done = subprocess.run(
        [sys.executable, "-c", IN_TURN, arguments], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    found = [json.loads(line) for line in done.stderr.splitlines() if line.startswith("[")]
    assert dict(zip(commands, found, strict=True)) == {each: ["numpy"] for each in commands}
    assert (tmp_path / "m" / "model.safetensors").is_file()
    assert regkit.tree(home)
