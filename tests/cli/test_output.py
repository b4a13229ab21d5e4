"""What reaches a terminal, a pipe, and a program."""

from __future__ import annotations

import json
import os
import pty
import subprocess
import sys
import unicodedata
from pathlib import Path

import pytest
import regkit
from clikit import Run

from adapterhub.cli import output
from adapterhub.errors import BaseMismatch

EVIL = "\x1b]0;owned\x07\x1b[31mred\x9b2J\u202eback\x00"
SHOWN = "]0;owned[31mred2Jback"


@pytest.fixture
def evil(tmp_path: Path) -> Path:
    path = regkit.save_adapter(
        tmp_path / "evil",
        base_model_name_or_path=f"/x/{EVIL}",
        task_type=EVIL,
        **{f"field-{EVIL}": 1},
    )
    (path / "README.md").write_text(
        "---\nlicense: " + json.dumps(EVIL) + "\ntags: [" + json.dumps(EVIL) + "]\n---\n"
    )
    return path


def is_harmless(text: str) -> bool:
    return not [c for c in text if unicodedata.category(c) in ("Cc", "Cf") and c != "\n"]


@pytest.mark.parametrize("options", [(), ("--json",)])
def test_no_control_characters_of_strangers_get_through(
    run: Run, evil: Path, tmp_path: Path, options: tuple[str, ...]
) -> None:
    commands: list[tuple[str | Path, ...]] = [
        ("inspect", evil),
        ("add", evil, "--name", "a", "--labels", f"{EVIL},b"),
        ("list",),
        ("search", "a"),
        ("show", "a"),
        ("history", "a"),
        ("show", EVIL),
        ("add", tmp_path / EVIL.replace("\0", "")),
        ("base", "show", EVIL),
        ("edit", "a", "--description", EVIL),
        ("show", "a"),
    ]
    seen = ""
    for command in commands:
        said = run(*command, *options)
        assert is_harmless(said.out), command
        assert is_harmless(said.err), command
        seen += said.out + said.err
    assert "owned" in seen


def test_json_says_the_same_text_in_escapes(run: Run, evil: Path) -> None:
    assert run("inspect", evil, "--json").json["result"]["task"] == EVIL
    assert SHOWN in run("inspect", evil).out


def test_every_document_has_one_envelope(run: Run, adapter: Path) -> None:
    run("add", adapter, "--name", "a")
    for command in ("list", "show a", "inspect a", "history a", "verify", "env", "base list"):
        document = run(*command.split(), "--json").json
        assert document.keys() == {"schema", "command", "result"}
        assert document["schema"] == 1
        assert command.startswith(document["command"])
    for command, code in (("show nope", 1), ("show", 2), ("list --nope", 2), ("nope", 2)):
        said = run(*command.split(), "--json")
        assert said.code == code
        assert said.json.keys() == {"schema", "command", "error"}
        assert said.json["error"].keys() == {"code", "message", "details", "remedy"}
        assert said.err == ""


def test_json_after_two_dashes_is_an_argument(run: Run) -> None:
    said = run("show", "--", "--json")
    assert said.code == 1
    assert said.err.startswith("error: ")


def test_a_pipe_gets_plain_text_as_wide_as_it_is(process: Run, adapter: Path) -> None:
    name = "n" * 100
    process("add", adapter, "--name", name, "--tag", "t" * 100)
    said = process("list", COLUMNS="40")
    assert len(said.lines) == 2
    assert said.lines[1].startswith(f"{name}  {'t' * 100}  lora")
    assert "\x1b" not in said.out
    assert all(line == line.rstrip() for line in said.lines)


def test_a_terminal_gets_colours_in_its_width(home: Path, adapter: Path) -> None:
    ours, theirs = pty.openpty()
    child = subprocess.Popen(
        [sys.executable, "-m", "adapterhub", "inspect", str(adapter)],
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        env={**os.environ, "COLUMNS": "60", "TERM": "xterm"},
    )
    os.close(theirs)
    pieces = []
    try:
        while piece := os.read(ours, 65536):
            pieces.append(piece)
    except OSError:  # the other end is closed
        pass
    os.close(ours)
    assert child.wait(60) == 0
    text = b"".join(pieces).decode()
    assert "\x1b[1m" in text
    assert "! " in text


def test_a_reader_that_leaves_early(home: Path) -> None:
    with subprocess.Popen(
        [sys.executable, "-m", "adapterhub", "env"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as child:
        assert child.stdout is not None
        assert child.stderr is not None
        child.stdout.close()
        assert "Traceback" not in child.stderr.read()
        assert child.wait(60) == 1


def test_a_terminal_that_is_not_in_utf8(process: Run, adapter: Path) -> None:
    said = process("inspect", adapter, PYTHONIOENCODING="ascii", PYTHONUTF8="0")
    assert said.code == 0
    assert "Traceback" not in said.err
    assert "no licence is stated" in said.out


@pytest.mark.slow
def test_bash_completion_completes_commands_names_and_tags(process: Run, adapter: Path) -> None:
    process("add", adapter, "--name", "sentiment-en", "--tag", "prod")

    def complete(words: str) -> list[str]:
        said = process(
            _ADAPTERHUB_COMPLETE="bash_complete",
            COMP_WORDS=f"adapterhub {words}",
            COMP_CWORD=str(len(words.split(" "))),
        )
        return said.lines

    assert complete("rei") == ["plain,reindex"]
    assert complete("show sent") == ["plain,sentiment-en"]
    assert complete("show sentiment-en:p") == ["plain,sentiment-en:prod"]
    assert complete("show absent") == [""]
    script = process(_ADAPTERHUB_COMPLETE="bash_source")
    assert "complete -o nosort -F" in script.out


def test_errors_that_are_alike_in_every_layer_share_a_line(
    capsys: pytest.CaptureFixture[str],
) -> None:
    layers = [f"layers.{n}.self_attn.q.weight: the base has no such tensor" for n in range(12)]
    other = "head.weight: the adapter has [4, 2], the base [3, 2]"
    output.print_error(BaseMismatch("it does not fit", details=layers))
    assert capsys.readouterr().err.count("\n") == 13
    output.print_error(BaseMismatch("it does not fit", details=[*layers, other]))
    assert capsys.readouterr().err.splitlines() == [
        "error: it does not fit",
        "  - layers.*.self_attn.q.weight: the base has no such tensor (12 of them)",
        f"  - {other}",
    ]
