"""compose."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from adapterhub.cli import output
from adapterhub.cli.merging import split_weight
from adapterhub.cli.opening import adapter_argument, open_registry, short_ref
from adapterhub.cli.output import json_option, progress, quiet_option

if TYPE_CHECKING:
    from adapterhub.composing import Composition


@click.command()
@adapter_argument("adapters", metavar="ADAPTER[=WEIGHT]...", nargs=-1)
@click.option("--method", "-m", default="sum", show_default=True, help="--methods lists them.")
@click.option("--methods", "listing", is_flag=True, help="List the methods and their parameters.")
@click.option(
    "--param",
    "-p",
    "parameters",
    multiple=True,
    metavar="KEY=VALUE",
    help="A parameter of the method: -p density=0.5.",
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
    words = {"true": True, "false": False}
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
    ranks = sorted({one.rank for one in report.modules})
    output.print_facts(
        {
            "method": report.method,
            "parameters": report.parameters,
            "adapters": [f"{short_ref(i['name'])} × {i['weight']:g}" for i in report.inputs],
            "modules": len(report.modules),
            "rank": "–".join(str(rank) for rank in sorted({*ranks[:1], *ranks[-1:]})) or None,
            "truncation lost": _share(report.error),
            "same bits": "on every machine" if report.reproducible else "on one machine only",
            "notes": report.notes,
        }
    )
    worst = sorted((m for m in report.modules if m.error), key=lambda m: -(m.error or 0))[:5]
    if worst:
        click.echo()
        rows = [(m.module, m.rank, _share(m.error)) for m in worst]
        output.print_table(("most lost in", "rank", "lost"), rows, right=("rank", "lost"))


def _share(error: float | None) -> str | None:
    return None if error is None else f"{error:.2%} of the norm"


def _print_methods(as_json: bool) -> None:
    from adapterhub.composing.table import TABLE

    if as_json:
        output.print_json([row.to_dict() for row in TABLE.values()])
        return
    output.print_table(
        ("method", "title", "on", "parameters", "same bits"),
        [
            (r.name, r.title, r.kind, _listed(r.parameters), "yes" if r.exact else "–")
            for r in TABLE.values()
        ],
    )


def _listed(parameters: Iterable[Any]) -> str:
    return ", ".join(f"{p.name}={p.default}" for p in parameters) or "–"


COMMANDS = (compose,)
