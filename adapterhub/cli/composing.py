"""compose."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from adapterhub.cli import made, output, truncation
from adapterhub.cli.merging import split_weight
from adapterhub.cli.opening import adapter_argument, open_registry, short_ref
from adapterhub.cli.output import json_option, quiet_option

if TYPE_CHECKING:
    from adapterhub.composing import Report
    from adapterhub.composing.methods.row import Method


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
    metavar="FILE",
    help="A YAML file that says what to compose; --name or --out take the place of its own.",
)
@made.target_options
@click.option("--rank", type=int, help="Truncate each module to this rank.")
@click.option("--energy", type=float, help="Truncate to this share of its energy: 0.99.")
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
    """Make one adapter of several that are for one base.

    adapterhub compose a b=0.5 --method ties -p density=0.5 --rank 8 --name both
    """
    from adapterhub import api

    if listing:
        _print_methods(as_json)
        return
    _refuse_mixture(adapters, options["recipe"])
    specs = [split_weight(text) for text in adapters]
    with open_registry() as registry, ExitStack() as bars:
        found = api.compose(
            specs,
            parameters=dict(map(_parameter, parameters)),
            registry=registry,
            on_plan=made.counting(bars, "composing"),
            **options,
        )
    report = found.report
    made.tell(found, "composed", _facts(report), report.modules, as_json=as_json, quiet=quiet)


_OF_A_RECIPE = {
    **{name: f"--{name}" for name in ("method", "rank", "energy", "whole", "seed")},
    "parameters": "-p",
}


def _refuse_mixture(adapters: tuple[str, ...], recipe: Path | None) -> None:
    """A recipe says all that the other options say."""
    if recipe is None:
        if not adapters:
            raise click.UsageError("Missing argument 'ADAPTER[=WEIGHT]...' (or '--recipe FILE').")
        return
    context = click.get_current_context()
    source = click.core.ParameterSource.COMMANDLINE
    given = [
        option
        for name, option in _OF_A_RECIPE.items()
        if context.get_parameter_source(name) is source
    ]
    if adapters or given:
        what = ", ".join(["ADAPTER"] * bool(adapters) + given)
        raise click.UsageError(f"--recipe says what to compose; leave {what} away.")


def _parameter(text: str) -> tuple[str, Any]:
    """`density=0.5` → ("density", 0.5)."""
    key, equals, value = text.partition("=")
    if not equals or not key:
        raise click.UsageError(f"-p {text!r}: expected KEY=VALUE, as in -p density=0.5")
    words = {"true": True, "yes": True, "false": False, "no": False}
    if value.lower() in words:
        return key, words[value.lower()]
    for number in (int, float):
        try:
            return key, number(value)
        except ValueError:
            continue
    return key, value


def _facts(report: Report) -> dict[str, Any]:
    return {
        "method": report.method,
        "parameters": report.parameters,
        "adapters": [f"{short_ref(i['name'])} × {_weight(i['weight'])}" for i in report.inputs],
        "modules": len(report.modules) or None,
        "rank": truncation.ranks(report.modules),
        "saved whole": made.names(report.saved),
        "truncation": truncation.said(report.error),
        "same bits": made.same_bits(report.reproducible),
        "notes": "; ".join(map(output.for_people, report.notes)),
    }


def _weight(weight: Any) -> str:
    """A recipe may have cases."""
    return "by module" if isinstance(weight, list) else f"{weight:g}"


def _print_methods(as_json: bool) -> None:
    """Methods, then what each parameter is: together no wider than a page."""
    from adapterhub.composing.methods.table import TABLE

    if as_json:
        output.print_json([row.to_dict() for row in TABLE.values()])
        return
    output.print_table(
        ("method", "what it makes", "density", "same bits"),
        [(r.name, r.title, _density(r), "yes" if r.exact else "–") for r in TABLE.values()],
    )
    click.echo(
        "\ndensity: its default; same bits: on every machine, unless truncated"
        "\n\nparameters, as -p density=0.3"
    )
    output.print_table(("name", "meaning (default)"), _parameter_rows(TABLE.values()))
    click.echo()
    notes = [(row.name, row.note) for row in TABLE.values() if row.note]
    output.print_table(("method", "note"), notes)


def _density(row: Method) -> str:
    return next((output.cell(p.default) for p in row.parameters if p.name == "density"), "–")


def _parameter_rows(rows: Iterable[Method]) -> list[tuple[str, str]]:
    """One for each, with its default in each method that has it."""
    found: dict[tuple[str, str], dict[str, list[str]]] = {}
    for row in rows:
        for one in row.parameters:
            defaults = found.setdefault((one.name, one.help), {})
            defaults.setdefault(output.cell(one.default), []).append(row.name)
    return [(name, f"{text}{_defaults(name, found[name, text])}") for name, text in found]


def _defaults(name: str, found: Mapping[str, Sequence[str]]) -> str:
    """` (no; yes in ties, della)`: the commonest first, which needs no names."""
    if name == "density":
        return " (see above)"
    (first, _), *others = sorted(found.items(), key=lambda each: -len(each[1]))
    if first == output.cell(None):
        return ""
    said = [first, *(f"{value} in {', '.join(names)}" for value, names in others)]
    return f" ({'; '.join(said)})"


COMMANDS = (compose,)
