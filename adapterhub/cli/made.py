"""What compose, resize and extract have in common: where the result goes, and how it is told."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from adapterhub.cli import output, truncation
from adapterhub.cli.opening import short_ref
from adapterhub.cli.output import progress

if TYPE_CHECKING:
    from adapterhub.composing import Composition, Extracted, Resized
    from adapterhub.composing.result import ModuleReport

F = TypeVar("F", bound=Callable[..., Any])
_MANY = 8  # names; more are told by patterns


def target_options(function: F) -> F:
    """`--name` and `--out`: one of them has to be given."""
    where = click.Path(path_type=Path)
    out = click.option("--out", type=where, metavar="DIR", help="Or a new directory.")
    text = "A name in the registry; the result is its new version."
    return click.option("--name", metavar="NAME", help=text)(out(function))


def counting(bars: ExitStack, title: str) -> Callable[[int], output.Progress]:
    """An `on_plan` that shows a bar for so many modules, as long as `bars` is open."""
    return lambda modules: bars.enter_context(progress(title, modules, unit_bytes=False))


def tell(
    made: Composition | Resized | Extracted,
    title: str,
    facts: Mapping[str, Any],
    modules: Sequence[ModuleReport],
    *,
    as_json: bool,
    quiet: bool,
) -> None:
    """JSON, an id, or `facts` and what was lost where."""
    target = str(made.version or made.out)
    if as_json:
        output.print_json(made.to_dict())
    elif quiet:
        click.echo(target)
    else:
        click.secho(f"{title} {output.clean(short_ref(target))}", bold=True)
        output.print_facts(facts)
        truncation.print_worst(modules)


def same_bits(reproducible: bool) -> str:
    """Where the same inputs give the same digest."""
    return "on every machine" if reproducible else "on one machine only"


def names(found: Sequence[str]) -> list[str]:
    """Many that differ in numbers of layers only are one, with `*`."""
    from adapterhub.registry.inspection import starred

    return list(found) if len(found) <= _MANY else list(starred(found))
