"""compose."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from adapterhub.cli import output, truncation
from adapterhub.cli.merging import split_weight
from adapterhub.cli.opening import adapter_argument, open_registry, short_ref
from adapterhub.cli.output import json_option, progress, quiet_option

if TYPE_CHECKING:
    from adapterhub.composing import Composition
    from adapterhub.composing.methods import Method


@click.command()
@adapter_argument("adapters", metavar="ADAPTER[=WEIGHT]...", nargs=-1)
@click.option(
    "--method",
    "-m",
    default="sum",
    metavar="NAME",
    show_default=True,
    help="sum, average, ties, …: --methods lists them.",
)
@click.option("--methods", "listing", is_flag=True, help="List the methods and their parameters.")
@click.option(
    "--param",
    "-p",
    "parameters",
    multiple=True,
    metavar="KEY=VALUE",
    help="A parameter of the method: -p density=0.5. May be given several times.",
)
@click.option(
    "--recipe",
    type=click.Path(path_type=Path),
    help="A YAML file that says what to compose; --name and --out go before its own.",
)
@click.option("--name", help="A name in the registry; the result is its new version.")
@click.option("--out", type=click.Path(path_type=Path), help="Or a new directory.")
@click.option("--rank", type=int, help="Truncate each module to this rank.")
@click.option("--energy", type=float, help="Or to this share of its energy: 0.99.")
@click.option(
    "--whole",
    default="refuse",
    metavar="average|ADAPTER",
    help="What becomes of heads that differ; refused by default.",
)
@click.option("--seed", type=int, default=0, help="Of methods that drop elements by chance.")
@click.option("--force-base", is_flag=True, help="Even if they are not known to be of one base.")
@click.option("--allow-pickle", is_flag=True, help="Read an adapter's .bin file.")
@json_option
@quiet_option
def compose(
    adapters: tuple[str, ...],
    listing: bool,
    parameters: tuple[str, ...],
    as_json: bool,
    quiet: bool,
    **options: Any,
) -> None:
    """Make one adapter of several that are for one base."""
    from adapterhub import api

    if listing:
        _print_methods(as_json)
        return
    _refuse_mixture(adapters, options["recipe"])
    specs = [split_weight(text) for text in adapters]
    with open_registry() as registry, ExitStack() as bars:

        def on_plan(modules: int) -> output.Progress:
            return bars.enter_context(progress("composing", modules, unit_bytes=False))

        made = api.compose(
            specs,
            parameters=dict(map(_parameter, parameters)),
            registry=registry,
            on_plan=on_plan,
            **options,
        )
    if as_json:
        output.print_json(made.to_dict())
    elif quiet:
        click.echo(made.version or made.out)
    else:
        _print(made)


_OF_A_RECIPE = ("method", "parameters", "rank", "energy", "whole", "seed")


def _refuse_mixture(adapters: tuple[str, ...], recipe: Path | None) -> None:
    """A recipe says all that the other options say."""
    if recipe is None:
        if not adapters:
            raise click.UsageError("Missing argument 'ADAPTER[=WEIGHT]...' (or '--recipe FILE').")
        return
    context = click.get_current_context()
    source = click.core.ParameterSource.COMMANDLINE
    given = [name for name in _OF_A_RECIPE if context.get_parameter_source(name) is source]
    if adapters or given:
        what = ", ".join(["ADAPTER"] * bool(adapters) + [f"--{name}" for name in given])
        raise click.UsageError(f"--recipe says what to compose; leave {what} away.")


def _parameter(text: str) -> tuple[str, Any]:
    """`density=0.5` → ("density", 0.5)."""
    key, equals, value = text.partition("=")
    if not equals or not key:
        raise click.UsageError(f"-p {text!r}: expected KEY=VALUE, as in -p density=0.5")
    words = {"true": True, "yes": True, "false": False, "no": False}
    if value in words:
        return key, words[value]
    for number in (int, float):
        try:
            return key, number(value)
        except ValueError:
            continue
    return key, value


def _print(made: Composition) -> None:
    report = made.report
    title = f"composed {short_ref(made.version)}" if made.version else f"composed {made.out}"
    click.secho(title, bold=True)
    output.print_facts(
        {
            "method": report.method,
            "parameters": report.parameters,
            "adapters": [f"{short_ref(i['name'])} × {i['weight']:g}" for i in report.inputs],
            "modules": len(report.modules) or None,
            "rank": truncation.ranks(report.modules),
            "truncation": truncation.said(report.error),
            "same bits": "on every machine" if report.reproducible else "on one machine only",
            "notes": report.notes,
        }
    )
    truncation.print_worst(report.modules)


def _print_methods(as_json: bool) -> None:
    """Methods, then what each parameter is: together no wider than a page."""
    from adapterhub.composing.table import TABLE

    if as_json:
        output.print_json([row.to_dict() for row in TABLE.values()])
        return
    output.print_table(
        ("method", "what it makes", "works on", "density", "same bits"),
        [(r.name, r.title, r.kind, _density(r), "yes" if r.exact else "–") for r in TABLE.values()],
    )
    click.echo(
        "\ndensity: its default; same bits: on every machine, unless truncated"
        "\n\nparameters, as -p density=0.3"
    )
    output.print_table(("name", "default", "meaning"), _parameter_rows(TABLE.values()))
    click.echo()
    notes = [(row.name, row.note) for row in TABLE.values() if row.note]
    output.print_table(("method", "note"), notes)


def _density(row: Method) -> str:
    return next((output.cell(p.default) for p in row.parameters if p.name == "density"), "–")


def _parameter_rows(rows: Iterable[Method]) -> list[tuple[str, str, str]]:
    """One for each, with its default in each method that has it."""
    found: dict[tuple[str, str], dict[str, list[str]]] = {}
    for row in rows:
        for one in row.parameters:
            defaults = found.setdefault((one.name, one.help), {})
            defaults.setdefault(output.cell(one.default), []).append(row.name)
    return [(name, _defaults(name, found[name, text]), text) for name, text in found]


def _defaults(name: str, found: Mapping[str, Sequence[str]]) -> str:
    """`no; yes in ties, della`: the commonest first, which needs no names."""
    if name == "density":
        return "by method"
    first, *others = sorted(found.items(), key=lambda each: -len(each[1]))
    return "; ".join([first[0], *(f"{value} in {', '.join(names)}" for value, names in others)])


COMMANDS = (compose,)
