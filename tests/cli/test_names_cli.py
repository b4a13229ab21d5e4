"""edit, mv, rm, tag, untag, history, rollback."""

from __future__ import annotations

import os
import pty
import re
import subprocess
import sys
from pathlib import Path

import pytest
import regkit
from clikit import Run


@pytest.fixture
def two(run: Run, adapter: Path) -> tuple[str, str]:
    """Digests of two versions of `a`."""
    versions = []
    for seed in (1, 2):
        regkit.save_adapter(adapter, regkit.lora(seed))
        versions.append(run("add", adapter, "--name", "a", "-q").out.strip().partition("@")[2])
    return versions[0], versions[1]


def test_promotion_and_its_undoing(run: Run, two: tuple[str, str]) -> None:
    first, second = two
    assert run("tag", f"a@{first}", "prod").out == f"a:prod is now {first[:19]}\n"
    moved = run("tag", "a", "prod")
    assert moved.out == f"a:prod is now {second[:19]}, was {first[:19]}\n"
    assert run("tag", "a", "prod").out == "a: nothing to change\n"
    back = run("rollback", "a", "prod")
    assert back.out == f"a:prod is back at {first[:19]}, was {second[:19]}\n"
    assert run("rollback", "a", "prod", "--to", second[7:15], "-q").out == f"a@{second}\n"
    gone = run("untag", "a", "prod")
    assert gone.out == f"a:prod is gone, was {second[:19]}\n"
    events = run("history", "a", "--json").json["result"]
    assert [e["op"] for e in events if e["tag"] == "prod"] == [
        "tag",
        "tag",
        "rollback",
        "rollback",
        "untag",
    ]


def test_history_is_a_table_of_who_when_from_and_to(
    run: Run, two: tuple[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ADAPTERHUB_USER", "ada")
    run("tag", f"a@{two[0]}", "prod")
    run("tag", "a", "prod")
    run("rm", "a", "--yes")
    lines = run("history", "a").lines
    assert lines[0].split() == ["when", "who", "what", "from", "to"]
    assert re.fullmatch(r"20\d\d-\d\d-\d\d \d\d:\d\d:\d\d", lines[-2][:19])
    assert lines[-2].split()[2:] == ["ada", "tag", "prod", two[0][:19], two[1][:19]]
    assert lines[-1].split()[2:] == ["ada", "remove", "every", "version"]


def test_rm_without_somebody_to_ask_wants_yes(run: Run, two: tuple[str, str]) -> None:
    for options in ((), ("--json",)):
        said = run("rm", "a", *options)
        assert said.code == 2
        assert "--yes" in said.out + said.err
    assert run("list", "-q").out
    said = run("rm", "a", "-y")
    assert said.out == "removed a; undo: adapterhub rollback a latest\n"
    assert run("list", "-q").out == ""
    assert run("rollback", "a", "latest").code == 0
    assert run("show", "a", "-q").out.endswith(f"{two[1]}\n")


@pytest.mark.parametrize(("answer", "left"), [(b"n\n", True), (b"y\n", False)])
def test_rm_asks_on_a_terminal(
    run: Run, two: tuple[str, str], home: Path, answer: bytes, left: bool
) -> None:
    ours, theirs = pty.openpty()
    child = subprocess.Popen(
        [sys.executable, "-m", "adapterhub", "rm", "a"],
        stdin=theirs,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    os.close(theirs)
    os.write(ours, answer)
    out, err = child.communicate(timeout=60)
    os.close(ours)
    assert b"Remove a with 2 versions? [y/N]" in err
    assert (child.returncode, out == b"") == ((1, True) if left else (0, False))
    assert bool(run("list", "-q").out) == left


def test_removing_one_version_and_the_printed_undo(run: Run, two: tuple[str, str]) -> None:
    said = run("rm", f"a@{two[1][:15]}")
    undo = said.out.partition("undo: adapterhub ")[2].split()
    assert undo == ["tag", f"a@{two[1][:19]}", "latest"]
    assert run("show", "a", "-q").out == f"a@{two[0]}\n"
    assert run(*undo).code == 0
    assert run("show", "a", "-q").out == f"a@{two[1]}\n"


def test_mv(run: Run, two: tuple[str, str]) -> None:
    assert run("mv", "a", "team/b").out == "a is now team/b\n"
    assert run("list", "-q").out == f"team/b@{two[1]}\n"
    assert run("show", "a").code == 1


def test_edit(run: Run, two: tuple[str, str]) -> None:
    said = run(
        *("edit", "a", "--licence", "mit", "--topic", "x", "--topic", "y"),
        *("--metric", "f1=0.93", "--language", "de"),
    )
    assert said.out == "a: licence, language, topics, metrics\n"
    assert run("edit", "a", "--licence", "mit").out == "a: nothing to change\n"
    assert run("edit", "a", "--unset", "topics").out == "a: no topics\n"
    card = run("show", "a", "--json").json["result"]["card"]
    assert card == {"licence": "mit", "language": ["de"], "metrics": {"f1": 0.93}}
    assert run("edit", "a").code == 2
    assert run("edit", "a", "--metric", "f1").code == 1
    assert run("edit", "a", "--unset", "colour").code == 1


@pytest.mark.parametrize("name", ["Upper", "a b", "a/b/c", "-a", "ä", "a" * 200])
def test_names_are_checked_and_another_is_proposed(run: Run, adapter: Path, name: str) -> None:
    said = run("add", "--name", name, "--json", "--", adapter)
    assert said.code == 1
    assert said.json["error"]["code"] == "invalid-name"
    assert said.json["error"]["remedy"]
