"""base add, list, show, rm."""

from __future__ import annotations

from typing import Any

import click

from adapterhub.cli import output
from adapterhub.cli.opening import open_registry
from adapterhub.cli.output import json_option, progress, quiet_option, short


@click.group()
def base() -> None:
    """Base models: checkpoints on disk, and what identifies them."""


@base.command("add")
@click.argument("path", metavar="DIR|ID")
@click.option("--name", help="By default the directory's name, or the Hub id.")
@json_option
@quiet_option
def add(path: str, name: str | None, as_json: bool, quiet: bool) -> None:
    """Register a checkpoint: its digests are computed, nothing is copied."""
    with open_registry() as registry, progress("hashing") as advance:
        record = registry.base.add(path, name=name, progress=advance)
    if as_json:
        output.print_json(record)
    elif quiet:
        click.echo(record["name"])
    else:
        click.echo(f"registered {record['name']}: {record['weights_root']}")


@base.command("list")
@json_option
@quiet_option
def list_(as_json: bool, quiet: bool) -> None:
    """The registered bases."""
    with open_registry() as registry:
        records = registry.base.list()
    if as_json:
        output.print_json(records)
    elif quiet:
        for record in records:
            click.echo(record["name"])
    elif records:
        rows = [_row(record) for record in records]
        columns = ("name", "architecture", "parameters", "dtype", "weights", "path")
        output.print_table(columns, rows, right=("parameters",))
    else:
        output.note("no base is registered: adapterhub base add DIR")


def _row(record: dict[str, Any]) -> tuple[Any, ...]:
    return (
        record["name"],
        record["architecture"],
        f"{record['parameters']:,}",
        record["dtype"],
        short(record["weights_root"]),
        record["path"],
    )


@base.command("show")
@click.argument("name")
@json_option
def show(name: str, as_json: bool) -> None:
    """One registered base."""
    with open_registry() as registry:
        record = registry.base.show(name)
    if as_json:
        output.print_json(record)
    else:
        facts = {key: value for key, value in record.items() if key not in ("schema", "name")}
        output.print_facts(facts, title=record["name"])


@base.command("rm")
@click.argument("name")
@json_option
def rm(name: str, as_json: bool) -> None:
    """Forget a base; its files stay where they are."""
    with open_registry() as registry:
        record = registry.base.rm(name)
    if as_json:
        output.print_json(record)
    else:
        click.echo(f"forgot {record['name']}; its files stay at {record['path']}")


COMMANDS = (base,)
