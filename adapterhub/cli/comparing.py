"""compare."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from adapterhub.cli import output
from adapterhub.cli.opening import adapter_argument, open_registry, short_ref
from adapterhub.cli.output import json_option, progress

if TYPE_CHECKING:
    from adapterhub.composing.comparing.comparison import (
        Compared,
        Comparison,
        Met,
        ModuleComparison,
    )
    from adapterhub.composing.comparing.figures import Overlap

WIDE = 10  # adapters; a matrix of more is too wide to read
FEW = 10  # modules and pairs that are shown unless all are asked for
NAME = 44  # characters of an adapter's name
MODULE = 36  # and of a module's path, where the terminal has the room
_FIGURES = ("cosine", "signs differ", "overlap B", "and A")


@click.command()
@adapter_argument("adapters", metavar="ADAPTER ADAPTER...", nargs=-1, required=True)
@click.option(
    "--base", metavar="BASE", help="To measure the deltas against; by default the recorded one."
)
@click.option("--exact", is_flag=True, help="Compare the signs of all elements, not of a sample.")
@click.option("--layers", is_flag=True, help="List every module.")
@click.option(
    "--plot",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="A picture as .png, .svg or .pdf; needs adapterhub[plot].",
)
@click.option("--allow-pickle", is_flag=True, help="Read an adapter's .bin file.")
@json_option
def compare(
    adapters: tuple[str, ...], layers: bool, plot: Path | None, as_json: bool, **options: Any
) -> None:
    """Measure how alike adapters are, by module and in all.

    cosine: of their deltas; 1 is one direction, 0 nothing in common, -1 the opposite. signs differ:
    of the elements that both change, 50% is chance. overlap of B and of A: how far they write into
    and read from the same subspace, from 0 to 1. norm: Frobenius.
    """
    from adapterhub import api

    if len(adapters) < 2:
        raise click.UsageError("A comparison needs two ADAPTERs or more.")
    with open_registry() as registry, ExitStack() as bars:

        def on_plan(modules: int) -> output.Progress:
            return bars.enter_context(progress("comparing", modules, unit_bytes=False))

        found = api.compare(adapters, plot=plot, registry=registry, on_plan=on_plan, **options)
    if as_json:
        output.print_json(found.to_dict())
        return
    _print(found)
    _print_modules(found, layers)
    if plot is not None:
        click.echo(f"\npicture: {output.clean(str(plot))}")


def _print(found: Comparison) -> None:
    click.secho(f"compared {len(found.adapters)} adapters", bold=True)
    output.print_table(
        ("", "adapter", "method", "modules", "norm", "of the base"),
        [
            (n, _tail(short_ref(a.name), NAME), a.method, a.modules, f"{a.norm:.4g}", _of(a))
            for n, a in enumerate(found.adapters, 1)
        ],
        right=("", "modules", "norm", "of the base"),
    )
    if 2 < len(found.adapters) <= WIDE:
        click.echo("\ncosine of the whole deltas")
        numbers = [str(n) for n in range(1, len(found.adapters) + 1)]
        rows = [(n, *map(_figure, row)) for n, row in zip(numbers, found.cosine, strict=True)]
        output.print_table(("", *numbers), rows, right=("", *numbers))
    _print_pairs(found)
    _print_notes(found)


def _of(adapter: Any) -> str | None:
    return None if adapter.of_base is None else _share(adapter.of_base)


def _print_pairs(found: Comparison) -> None:
    """Of many those with most in common, and what speaks against one base."""
    ordered = list(zip(found.pairs, found.bases, strict=True))
    click.echo()
    if len(ordered) > FEW:
        ordered.sort(key=lambda each: -abs(each[0].cosine or 0.0))
        count = len(ordered)
        click.echo(f"the {FEW} pairs of {count} whose cosine is farthest from 0; --json has all")
    output.print_table(
        ("pair", *_FIGURES, "modules", "base"),
        [(_pair(met), *_figures(met), met.modules, b.relation) for met, b in ordered[:FEW]],
        right=(*_FIGURES, "modules"),
    )


def _print_notes(found: Comparison) -> None:
    notes = [f"bases: {each.said}" for each in found.bases if each.said]
    notes += [f"not compared, since shapes differ: {each}" for each in found.shapes]
    notes += [
        f"{a.name} changes nothing: its deltas are zeros" for a in found.adapters if not a.norm
    ]
    notes += _left_out(found.adapters)
    notes += found.notes
    if found.looked_at is not None and found.looked_at < 1:
        part = f"signs of {found.looked_at:.1%} of the elements"
        notes.append(f"{part}, which tell a module's share to ±5%; --exact compares all")
    click.echo(
        "\ncosine: 1 one direction, 0 nothing in common; signs differ: 50% is chance;"
        "\noverlap: 1 where they write into (B) and read from (A) one subspace"
    )
    if notes:
        click.echo()
    for note in notes[:FEW]:
        click.echo(f"• {output.for_people(note)}")
    if len(notes) > FEW:
        click.echo(f"• and {len(notes) - FEW} more: --json")


def _left_out(adapters: Sequence[Compared]) -> Iterator[str]:
    """What was not compared, and why; whose tensors are left out alike share a line."""
    alike: dict[tuple[str, ...], list[str]] = {}
    for adapter in adapters:
        if adapter.left_out:
            alike.setdefault(tuple(adapter.left_out), []).append(short_ref(adapter.name))
    for tensors, names in alike.items():
        first, more = tensors[0], len(tensors) - 1
        rest = f" (and {more} more)" if more else ""
        yield f"not compared, in {', '.join(names)}: {first}{rest}"


# --- modules ----------------------------------------------------------------------------------


def _print_modules(found: Comparison, all_of_them: bool) -> None:
    shared = [one for one in found.modules if one.pairs]
    if not shared:
        click.echo("\nno module is changed by two of them")
        return
    several = len(found.adapters) > 2
    title = "modules" + (", each with the pair that is least alike in it" if several else "")
    if not all_of_them:
        shared.sort(key=lambda one: _lowest(one)[0])
        more = f" of {len(shared)}; --layers lists all" if len(shared) > FEW else ""
        title = f"least alike: {min(FEW, len(shared))} modules{more}"
        shared = shared[:FEW]
    click.echo(f"\n{title}")
    columns = ("pair", *_FIGURES, "norms")[0 if several else 1 :]
    rows = [_row(one)[-len(columns) :] for one in shared]
    room = _room([columns, *rows])
    output.print_table(
        ("module", *columns),
        [(_tail(one.module, room), *row) for one, row in zip(shared, rows, strict=True)],
        right=_FIGURES,
    )


def _room(rows: Sequence[Sequence[str]]) -> int:
    """Characters that the other columns leave to a module's path."""
    others = sum(2 + max(map(len, column)) for column in zip(*rows, strict=True))
    return max(MODULE // 2, min(MODULE, output.columns() - others))


def _lowest(one: ModuleComparison) -> tuple[float, Met]:
    def value(met: Met) -> float:
        return 2.0 if met.cosine is None else met.cosine

    met = min(one.pairs, key=value)
    return value(met), met


def _row(one: ModuleComparison) -> tuple[str, ...]:
    met = _lowest(one)[1]
    norms = " ".join(f"{one.norms[number] or 0.0:.2g}" for number in met.pair)
    return _pair(met), *_figures(met), norms


def _pair(met: Met) -> str:
    return f"{met.pair[0] + 1}–{met.pair[1] + 1}"


def _figures(met: Met) -> Iterator[str]:
    yield _figure(met.cosine)
    yield _signs(met)
    yield _overlap(met.columns)
    yield _overlap(met.rows)


def _signs(met: Met) -> str:
    """Of the elements that both change, which of sparse deltas are few."""
    if not met.both_change or met.sign_conflicts is None:
        return "–"
    return _share(met.sign_conflicts / met.both_change)


def _overlap(found: Overlap | None) -> str:
    return "–" if found is None else f"{found.mean:.3f}"


def _figure(value: float | None) -> str:
    return "–" if value is None else f"{round(value, 3) + 0.0:.3f}"  # no -0.000


def _share(value: float) -> str:
    return f"{value:.1%}" if value >= 0.001 or value == 0 else f"{value:.1e}"


def _tail(text: str, most: int) -> str:
    """Of a long path the end, from one of its dots or slashes on where there is one."""
    if len(text) <= most:
        return text
    end = text[1 - most :]
    start = re.search("[./]", end)
    return f"…{end[start.end() if start else 0 :]}"


COMMANDS: Sequence[click.Command] = (compare,)
