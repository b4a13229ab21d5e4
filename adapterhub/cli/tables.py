"""methods, formats: what is supported, from the code's own tables."""

from __future__ import annotations

from dataclasses import asdict

import click

from adapterhub.cli import output
from adapterhub.cli.output import json_option


@click.command()
@json_option
def methods(as_json: bool) -> None:
    """The methods that this version knows."""
    from adapterhub import api

    rows = api.methods()
    if as_json:
        output.print_json([asdict(row) for row in rows])
        return
    columns = ("method", "PEFT type", "title", "paper", "schema")
    table = [(row.name, row.peft_type, row.title, row.paper, row.schema) for row in rows]
    output.print_table(columns, table)


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
