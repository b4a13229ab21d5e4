"""The table of methods, for people and for programs."""

from __future__ import annotations

import json
from typing import Any

from click.testing import CliRunner

from adapterhub.cli import main
from adapterhub.methods import TABLE


def _run(*args: str) -> Any:
    result = CliRunner().invoke(main, args)
    assert result.exit_code == 0, result.output
    return result


def test_the_table_fits_100_columns() -> None:
    lines = _run("methods").stdout.splitlines()
    assert [line.split()[0] for line in lines] == ["method", *TABLE]
    assert max(map(len, lines)) <= 100
    shown = {line.split()[0]: line.split() for line in lines}
    assert shown["lora"][-2:] == ["yes/yes", "yes/yes"]
    assert shown["ia3"][-2] == "base/yes"
    assert shown["prompt_tuning"][-2:] == ["no/no", "yes/yes"]
    assert shown["xlora"][-2:] == ["no/no", "yes/no"]


def test_programs_get_everything() -> None:
    rows = json.loads(_run("methods", "--json").stdout)["result"]
    by_name = {row["name"]: row for row in rows}
    assert list(by_name) == list(TABLE)
    assert by_name["lokr"]["mathematics"] == {"merge": "yes", "attach": "yes"}
    assert by_name["lokr"]["this_version"]["merge"] is True
    assert by_name["bone"]["successor"] == "miss"
    assert by_name["bottleneck"]["peft_type"] is None
    assert "dora" in by_name["lora"]["variants"]
