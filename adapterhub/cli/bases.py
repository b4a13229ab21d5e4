"""base add, list, show, rm, identify."""

from __future__ import annotations

from typing import Any

import click

from adapterhub.cli import output
from adapterhub.cli.opening import adapter_argument, open_registry
from adapterhub.cli.output import json_option, progress, quiet_option, short

_MOST = 10  # candidates in a table


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


@base.command("identify")
@adapter_argument("adapter", metavar="ADAPTER")
@click.option("--allow-pickle", is_flag=True, help="Read the tensors of a .bin file too.")
@json_option
@quiet_option
def identify(adapter: str, allow_pickle: bool, as_json: bool, quiet: bool) -> None:
    """Which base is an adapter for? Candidates from its shapes."""
    with open_registry() as registry:
        found = registry.identify(adapter, allow_pickle=allow_pickle)
    if as_json:
        output.print_json(found.to_dict())
        return
    if quiet:
        for name in found.candidates[0].names if found.candidates else ():
            click.echo(output.clean(name))
        return
    click.echo(output.clean(found.sentence))
    if len(found.candidates) > 1:
        rows = [(", ".join(c.names), c.sure, c.why) for c in found.candidates[:_MOST]]
        output.print_table(("base", "fits by", "why"), rows)
    for name in found.skipped:
        output.note(f"the registered base {name} cannot be opened, and was left out")


COMMANDS = (base,)
