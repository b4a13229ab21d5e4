"""list and search."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any, TypeVar

import click

from adapterhub.cli import output
from adapterhub.cli.opening import open_registry
from adapterhub.cli.output import cell, json_option, note, quiet_option, short, size, when

if TYPE_CHECKING:
    from adapterhub.registry import Registry
    from adapterhub.store import Filters, Row

F = TypeVar("F", bound=Callable[..., Any])


def filter_options(function: F) -> F:
    """The filters that `list` and `search` share."""
    for option in reversed(
        (
            click.option("--method", help="lora, …"),
            click.option("--base", help="Part of the base's name, or sha256:… of its root."),
            click.option("--rank-min", type=int, help="Lowest rank."),
            click.option("--rank-max", type=int, help="Highest rank."),
            click.option("--task", help="CAUSAL_LM, TOKEN_CLS, …"),
            click.option("--tag", help="Only names that have this tag."),
            click.option("--topic", help="Only names with this topic."),
            click.option("--licence", help="apache-2.0, …"),
        )
    ):
        function = option(function)
    return function


def _filters(options: Mapping[str, Any]) -> Filters:
    from adapterhub.store import Filters

    return Filters(**options)


@click.command("list")
@filter_options
@click.option("--text", help="Words that name, card, base or labels contain.")
@click.option("--order", type=click.Choice(["updated", "name"]), default="updated")
@click.option("--limit", type=click.IntRange(1, 10_000), default=50, show_default=True)
@click.option("--offset", type=click.IntRange(0), default=0)
@json_option
@quiet_option
def list_(order: str, limit: int, offset: int, as_json: bool, quiet: bool, **options: Any) -> None:
    """The adapters in the registry, the newest first."""
    filters = _filters(options)
    with open_registry() as registry:
        rows = registry.list(filters, order=order, limit=limit, offset=offset)
        total = registry.count(filters)
        bases = base_names(registry, rows)
    _print_rows(rows, bases, as_json, quiet)
    if not rows and not as_json and not quiet:
        filtered = total or any(value is not None for value in options.values())
        note("nothing matches" if filtered else "the registry is empty: adapterhub add PATH")
    elif total > offset + len(rows):
        note(f"{len(rows)} of {total}; the next page: --offset {offset + len(rows)}")


@click.command()
@click.argument("query")
@filter_options
@click.option("--limit", type=click.IntRange(1, 1000), default=20, show_default=True)
@json_option
@quiet_option
def search(query: str, limit: int, as_json: bool, quiet: bool, **options: Any) -> None:
    """Find adapters by words, the best match first.

    Words of the name, card, base, task or labels, or their beginnings; all must match.
    """
    with open_registry() as registry:
        rows = registry.search(query, _filters(options), limit=limit)
        bases = base_names(registry, rows)
    _print_rows(rows, bases, as_json, quiet)
    if not rows and not as_json and not quiet:
        note(f"nothing matches {query!r}; adapterhub list shows all")


def base_names(registry: Registry, rows: Sequence[Row]) -> Mapping[str, str]:
    """weights_root → registered name, if any row needs it for want of a name of its own."""
    if all(row.base_name or not row.base_weights_root for row in rows):
        return {}
    return {record["weights_root"]: record["name"] for record in registry.base.list()}


def _print_rows(rows: Sequence[Row], bases: Mapping[str, str], as_json: bool, quiet: bool) -> None:
    if as_json:
        output.print_json([_row_json(row) for row in rows])
    elif quiet:
        for row in rows:
            click.echo(f"{row.name}@{row.digest}")
    elif rows:
        columns = ("name", "tags", "method", "rank", "task", "base", "size", "updated")
        output.print_table(columns, [_row(row, bases) for row in rows], right=("size",))


def _row_json(row: Row) -> dict[str, Any]:
    """Without the text of the README, which `show` has."""
    card = {key: value for key, value in row.card.items() if key != "readme"}
    return {**asdict(row), "card": card}


def _short_path(name: str | None) -> str:
    """A Hub id as it is; of a path on somebody's machine its end."""
    if name is None or name.count("/") + name.count("\\") < 2:
        return name or ""
    return "…/" + name.replace("\\", "/").rstrip("/").rpartition("/")[2]


def _row(row: Row, bases: Mapping[str, str]) -> tuple[str, ...]:
    low, high = row.rank_min, row.rank_max
    rank = cell(low) if low == high else f"{low}–{high}"
    tags = ", ".join(sorted(tag for tag in row.tags if tag != "latest"))
    method = "+".join((row.method or "?", *row.variants))
    root = row.base_weights_root or ""
    updated = when(row.updated)
    return (
        row.name,
        tags,
        method,
        rank,
        cell(row.task),
        _short_path(row.base_name) or bases.get(root, short(root)),
        size(row.bytes),
        updated,
    )


COMMANDS = (list_, search)
