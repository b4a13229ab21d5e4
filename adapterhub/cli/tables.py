"""methods, formats: what is supported, from the code's own tables."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING

import click

from adapterhub.cli import output
from adapterhub.cli.output import json_option

if TYPE_CHECKING:
    from adapterhub.methods import Method


@click.command()
@json_option
def methods(as_json: bool) -> None:
    """The methods that this version knows."""
    from adapterhub import api

    rows = api.methods()
    if as_json:
        output.print_json([row.to_dict() for row in rows])
        return
    columns = ("method", "PEFT", "title", "rank", "merge", "attach")
    output.print_table(columns, [_method_cells(row) for row in rows])
    output.note("merge, attach: what the mathematics allows / what this version does")
    output.note("peft: this version leaves it to PEFT, and so cannot promise the same bits")
    output.note("base: it needs the base's own weights, so that such adapters do not add up")


def _method_cells(row: Method) -> tuple[str, ...]:
    allowed = row.mathematics
    return (
        row.name,
        "yes" if row.peft_type else "–",
        row.title,
        row.rank or "–",
        f"{allowed.merge}/{row.by or _word('merge' in row.does)}",
        f"{allowed.attach}/{_word('attach' in row.does)}",
    )


def _word(flag: bool) -> str:
    return "yes" if flag else "no"


@click.command()
@json_option
def formats(as_json: bool) -> None:
    """The formats that this version reads, writes, or only names."""
    from adapterhub import api

    rows = api.formats()
    if as_json:
        output.print_json([{**asdict(row), "does": row.does} for row in rows])
        return
    columns = ("format", "title", "files", "this version")
    output.print_table(columns, [(row.name, row.title, row.files, row.does) for row in rows])


COMMANDS = (methods, formats)
