"""inspect, add, list, search, show, path, export, diff."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from adapterhub.cli import output
from adapterhub.cli.output import cell, json_option, note, quiet_option, short, size, when

if TYPE_CHECKING:
    from adapterhub.adapter import Problem
    from adapterhub.registry import Added, Inspection, Registry, Taken
    from adapterhub.store import Filters, Row

F = TypeVar("F", bound=Callable[..., Any])


def open_registry() -> Registry:
    from adapterhub import api

    return api.open(on_note=note)


# --- inspect ----------------------------------------------------------------------------------


@click.command()
@click.argument("adapter", metavar="PATH|FILE|REF")
@click.option("--allow-pickle", is_flag=True, help="Read the tensors of a .bin file too.")
@json_option
def inspect(adapter: str, allow_pickle: bool, as_json: bool) -> None:
    """What is this? Method, rank, targets, base, and what is wrong with it."""
    with open_registry() as registry:
        found = registry.inspect(adapter, allow_pickle=allow_pickle)
    if as_json:
        output.print_json(found.to_dict())
        return
    output.print_facts(_facts(found), title=found.source)
    print_problems(found.problems)


def _facts(found: Inspection) -> Mapping[str, Any]:
    return {
        "format": found.format,
        "method": " + ".join((found.method or "unknown", *found.variants)),
        "rank": rank_text(found.rank),
        "alpha": found.alpha,
        "targets": found.targets,
        "saved whole": found.saved,
        "dtype": found.dtype,
        "parameters": f"{found.parameters:,}" if found.parameters is not None else None,
        "size": size(found.bytes) if found.bytes is not None else None,
        "task": found.task,
        "labels": found.labels,
        "base": found.base["name"],
        "revision": found.base["revision"],
        "licence": found.licence,
        "peft version": found.peft_version,
        "files": found.files,
    }


def rank_text(rank: Mapping[str, Any] | None) -> str | None:
    """`8`, or `4–16 (5 modules differ)`."""
    if rank is None:
        return None
    if rank["min"] == rank["max"]:
        return str(rank["min"])
    return f"{rank['min']}–{rank['max']} ({len(rank['pattern'])} modules differ)"


def print_problems(problems: Iterable[Problem]) -> None:
    problems = list(problems)
    if not problems:
        click.secho("no problems", fg="green")
    for problem in problems:
        colour = "red" if problem.fatal else "yellow"
        click.secho("✗ " if problem.fatal else "! ", fg=colour, nl=False)
        click.echo(output.clean(problem.message))
        if problem.remedy:
            click.echo(f"    → {output.clean(problem.remedy)}")


# --- add --------------------------------------------------------------------------------------


@click.command()
@click.argument("path", type=click.Path(path_type=Path))
@click.option("--name", help="Name in the registry; by default from the path.")
@click.option("--tag", "tags", multiple=True, help="A tag to move to it too; repeatable.")
@click.option("--base", help="The BASE it belongs to: checked against it, and its digest recorded.")
@click.option("--labels", help="Label names in order, separated by commas: O,SRC,REL,TGT.")
@click.option("--recursive", is_flag=True, help="Take every adapter below PATH.")
@click.option("--new", is_flag=True, help="Refuse if the name exists already.")
@click.option("--allow-pickle", is_flag=True, help="Take .bin files, stored as safetensors.")
@json_option
@quiet_option
def add(
    path: Path,
    name: str | None,
    tags: tuple[str, ...],
    base: str | None,
    labels: str | None,
    recursive: bool,
    new: bool,
    allow_pickle: bool,
    as_json: bool,
    quiet: bool,
) -> None:
    """Put an adapter into the registry, as a new version of its name."""
    options: dict[str, Any] = {
        "name": name,
        "tag": tags,
        "base": base,
        "labels": tuple(label.strip() for label in labels.split(",")) if labels else (),
        "new": new,
        "allow_pickle": allow_pickle,
    }
    with open_registry() as registry:
        if recursive:
            _print_taken(list(registry.add_runs(path, **options)), as_json, quiet)
        else:
            _print_added(registry.add(path, **options), as_json, quiet)


def _print_added(added: Added, as_json: bool, quiet: bool) -> None:
    if as_json:
        output.print_json(added.to_dict())
    elif quiet:
        click.echo(added.version)
    else:
        verb = "added" if added.status == "added" else "already there, nothing changed"
        click.echo(f"{verb}: {added.name}@{short(added.digest)}")
        facts = f"{added.method}, {added.parameters:,} parameters, {size(added.bytes)}"
        click.echo(f"  {facts}, base {output.clean(added.base or 'unknown')}")
        for text in added.notes:
            note(text)


def _print_taken(taken: list[Taken], as_json: bool, quiet: bool) -> None:
    if as_json:
        output.print_json([one.to_dict() for one in taken])
    elif quiet:
        for one in taken:
            if one.version:
                click.echo(one.version)
    else:
        rows = [(one.path, one.status, _version_or_error(one)) for one in taken]
        output.print_table(("path", "status", "version or reason"), rows)
    refused = sum(one.status == "refused" for one in taken)
    if refused:
        note(f"{len(taken) - refused} of {len(taken)} adapters taken, {refused} refused")
    if refused == len(taken):
        click.get_current_context().exit(1)


def _version_or_error(one: Taken) -> str:
    if one.version is None:
        return one.error or ""
    return f"{one.name}@{short(one.version.partition('@')[2])}"


# --- list and search --------------------------------------------------------------------------


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
    _print_rows(rows, as_json, quiet)
    if not rows and not as_json and not quiet:
        note("nothing here" if total or any(options.values()) else "empty: adapterhub add PATH")
    elif total > offset + len(rows):
        note(f"{len(rows)} of {total}; the next page: --offset {offset + len(rows)}")


@click.command()
@click.argument("query")
@filter_options
@click.option("--limit", type=click.IntRange(1, 1000), default=20, show_default=True)
@json_option
@quiet_option
def search(query: str, limit: int, as_json: bool, quiet: bool, **options: Any) -> None:
    """Find adapters by words of their name, card, base, task or labels; the best first."""
    with open_registry() as registry:
        rows = registry.search(query, _filters(options), limit=limit)
    _print_rows(rows, as_json, quiet)
    if not rows and not as_json and not quiet:
        note(f"nothing matches {query!r}; adapterhub list shows all")


def _print_rows(rows: Iterable[Row], as_json: bool, quiet: bool) -> None:
    if as_json:
        output.print_json([asdict(row) for row in rows])
    elif quiet:
        for row in rows:
            click.echo(f"{row.name}@{row.digest}")
    elif rows:
        columns = ("name", "tags", "method", "rank", "task", "base", "size", "updated")
        output.print_table(columns, [_row(row) for row in rows], right=("size",))


def _row(row: Row) -> tuple[str, ...]:
    low, high = row.rank_min, row.rank_max
    rank = cell(low) if low == high else f"{low}–{high}"
    tags = ", ".join(sorted(tag for tag in row.tags if tag != "latest"))
    method = "+".join((row.method or "?", *row.variants))
    updated = when(row.updated)
    return (
        row.name,
        tags,
        method,
        rank,
        cell(row.task),
        cell(row.base_name),
        size(row.bytes),
        updated,
    )


# --- one version ------------------------------------------------------------------------------


@click.command()
@click.argument("ref")
@json_option
@quiet_option
def show(ref: str, as_json: bool, quiet: bool) -> None:
    """Everything that the registry knows of a version."""
    with open_registry() as registry:
        found = registry.show(ref)
    if as_json:
        output.print_json(found)
    elif quiet:
        click.echo(found["version"])
    else:
        _print_version(found)


def _print_version(found: Mapping[str, Any]) -> None:
    manifest, card, base = found["manifest"], found["card"], found["manifest"]["base"]
    tags = sorted(tag for tag, digest in found["tags"].items() if digest == found["digest"])
    output.print_facts(
        {
            "version": found["digest"],
            "tags": tags,
            "method": " + ".join((manifest["method"], *manifest["variants"])),
            "rank": rank_text(manifest["rank"]),
            "alpha": manifest["alpha"],
            "targets": manifest["targets"],
            "saved whole": manifest["saved"],
            "dtype": manifest["dtype"],
            "parameters": f"{manifest['parameters']:,}",
            "task": manifest["task"],
            "labels": manifest["labels"],
            "base": base["name"],
            "base revision": base["revision"],
            "base weights": base["weights_root"] or "not recorded: add it again with --base",
            "adapter root": manifest["adapter_root"],
            "description": card.get("description"),
            "licence": card.get("licence"),
            "language": card.get("language"),
            "topics": card.get("topics"),
            "metrics": card.get("metrics"),
            "origin": found["origin"],
            "versions": len(found["versions"]),
        },
        title=found["name"],
    )
    rows = [(e["path"], size(e["size"]), short(e["sha256"])) for e in manifest["files"]]
    output.print_table(("file", "size", "sha256"), rows, right=("size",))


@click.command()
@click.argument("ref")
def path(ref: str) -> None:
    """Print a plain PEFT directory of a version, for other tools to read."""
    with open_registry() as registry:
        click.echo(registry.path(ref))


@click.command()
@click.argument("ref")
@click.argument("directory", type=click.Path(path_type=Path))
@json_option
def export(ref: str, directory: Path, as_json: bool) -> None:
    """Copy a version's original files into a new DIRECTORY."""
    with open_registry() as registry:
        version = registry.export(ref, directory)
    if as_json:
        output.print_json({"version": version, "directory": str(directory)})
    else:
        click.echo(f"exported {version} to {directory}")


@click.command()
@click.argument("left", metavar="REF")
@click.argument("right", metavar="REF")
@json_option
def diff(left: str, right: str, as_json: bool) -> None:
    """What differs between two versions; exit code 1 if anything does."""
    with open_registry() as registry:
        found = registry.diff(left, right)
    if as_json:
        output.print_json(found.to_dict())
    else:
        rows: list[tuple[Any, ...]] = [(name, *both) for name, both in found.fields.items()]
        rows += [(f"tensor {name}", "there", None) for name in found.only_left]
        rows += [(f"tensor {name}", None, "there") for name in found.only_right]
        if rows:
            output.print_table(("", short_ref(found.left), short_ref(found.right)), rows)
        click.echo(f"tensors: {found.same} equal, {len(found.changed)} with other values")
    if not found.equal:
        click.get_current_context().exit(1)


def short_ref(version: str) -> str:
    """`name@sha256:` and 12 digits; a path stays as it is."""
    name, at, digest = version.rpartition("@")
    return f"{name}@{short(digest)}" if at and digest.startswith("sha256:") else version


COMMANDS = (inspect, add, list_, search, show, path, export, diff)
