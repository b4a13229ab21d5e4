"""inspect, add, show, path, export, diff."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from adapterhub.cli import differing, lineage, output
from adapterhub.cli.opening import adapter_argument, open_registry, ref_argument, short_ref
from adapterhub.cli.output import json_option, note, plural, quiet_option, short, size, when

if TYPE_CHECKING:
    from adapterhub.adapter import Problem
    from adapterhub.registry import Added, Inspection, Registry, Taken


_SHOWN = 12  # of a list of modules


# --- inspect ----------------------------------------------------------------------------------


@click.command()
@adapter_argument("adapter", metavar="PATH|FILE|REF")
@click.option("--allow-pickle", is_flag=True, help="Read the tensors of a .bin file too.")
@json_option
def inspect(adapter: str, allow_pickle: bool, as_json: bool) -> None:
    """What is this? Format, method, rank, targets, base, problems.

    A directory of many adapters is listed; hub:OWNER/NAME is one in the Hugging Face cache.
    """
    with open_registry() as registry:
        if (root := registry.holds_many(adapter)) is not None:
            _inspect_many(registry, root, allow_pickle, as_json)
            return
        found = registry.inspect(adapter, allow_pickle=allow_pickle)
    if as_json:
        output.print_json(found.to_dict())
        return
    output.print_facts(_facts(found), title=found.source)
    print_problems(found.problems)


def _inspect_many(registry: Registry, root: Path, allow_pickle: bool, as_json: bool) -> None:
    found = []
    with output.progress("inspecting", unit_bytes=False) as advance:
        for one in registry.inspect_runs(root, allow_pickle=allow_pickle):
            found.append(one)
            advance(1)
    if as_json:
        output.print_json([one.to_dict() for one in found])
        return
    rows = [_row(one, root) for one in found]
    columns = ("path", "format", "method", "rank", "base", "size", "problems")
    output.print_table(columns, rows, right=("size",))
    fatal = sum(any(p.fatal for p in one.problems) for one in found)
    unfit = f", {fatal} that `add` refuses" if fatal else ""
    note(f"{plural(len(found), 'adapter')}{unfit}; adapterhub inspect PATH tells more of each")


def _row(found: Inspection, root: Path) -> tuple[Any, ...]:
    codes = dict.fromkeys(f"{'✗ ' if p.fatal else ''}{p.code}" for p in found.problems)
    return (
        Path(found.source).relative_to(root),
        found.format,
        " + ".join((found.method or "unknown", *found.variants)),
        (rank_text(found.rank) or "").partition(" ")[0] or None,
        found.base["name"],
        size(found.bytes) if found.bytes is not None else None,
        ", ".join(sorted(codes, key=lambda code: code[0] != "✗")) or "none",
    )


def _facts(found: Inspection) -> Mapping[str, Any]:
    return {
        "format": found.format,
        "method": " + ".join((found.method or "unknown", *found.variants)),
        "rank": rank_text(found.rank),
        "alpha": None if found.alpha is None else _figure(found.alpha),
        "scaling": spread(found.scaling),
        "targets": _some(found.targets),
        "saved whole": _some(found.saved),
        "dtype": found.dtype,
        "parameters": f"{found.parameters:,}" if found.parameters is not None else None,
        "size": size(found.bytes) if found.bytes is not None else None,
        "task": found.task,
        "labels": found.labels,
        "kind of model": found.modality,
        "base": found.base["name"] or "not named",
        "revision": found.base["revision"],
        "trained on": found.base["quantization"],
        "fits": (found.fits or "").removeprefix("fits "),
        "licence": found.licence,
        "peft version": found.peft_version,
        "files": found.files,
    }


def rank_text(rank: Mapping[str, Any] | None) -> str | None:
    """`8`, `4–16 (5 modules differ)`, `4 (the config says 16)`, `8 (as the config says)`."""
    if rank is None:
        return None
    declared = rank.get("declared")
    if rank["min"] is None:
        return f"{declared} (as the config says)"
    differs = rank["min"] == rank["max"] and declared not in (None, rank["min"])
    return f"{spread(rank)} (the config says {declared})" if differs else spread(rank)


def spread(figures: Mapping[str, Any] | None) -> str | None:
    """`8`, or `4–16 (5 modules differ)`."""
    if figures is None:
        return None
    low, high = _figure(figures["min"]), _figure(figures["max"])
    if low == high:
        return low
    count = len(figures["pattern"])
    return f"{low}–{high} ({plural(count, 'module')} differ{'s' if count == 1 else ''})"


def _figure(value: float) -> str:
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def _some(names: Sequence[str]) -> Sequence[str]:
    """The first few, and how many more there are."""
    if len(names) <= _SHOWN + 1:
        return names
    return (*names[:_SHOWN], f"and {len(names) - _SHOWN} more (all: --json)")


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
    """Put an adapter into the registry, as a version of its name."""
    options: dict[str, Any] = {
        "name": name,
        "tag": tags,
        "base": base,
        "labels": tuple(label.strip() for label in labels.split(",")) if labels else (),
        "new": new,
        "allow_pickle": allow_pickle,
    }
    with open_registry() as registry:
        if not recursive:
            with output.progress("hashing the base") as advance:
                added = registry.add(path, **options, progress=advance)
            _print_added(added, as_json, quiet)
            return
        taken = []
        with output.progress("adding", unit_bytes=False) as advance:
            for one in registry.add_runs(path, **options):
                taken.append(one)
                advance(1)
    _print_taken(taken, as_json, quiet)


_ADDED = {
    "added": "added",
    "updated": "already there, its tags or card changed",
    "unchanged": "already there, nothing changed",
}


def _print_added(added: Added, as_json: bool, quiet: bool) -> None:
    if as_json:
        output.print_json(added.to_dict())
    elif quiet:
        click.echo(added.version)
    else:
        click.echo(f"{_ADDED[added.status]}: {added.name}@{short(added.digest)}")
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
        for text in dict.fromkeys(text for one in taken for text in one.notes):
            note(text)
    refused = sum(one.status == "refused" for one in taken)
    if refused:
        note(f"{len(taken) - refused} of {plural(len(taken), 'adapter')} taken, {refused} refused")
    if refused == len(taken):
        click.get_current_context().exit(1)


def _version_or_error(one: Taken) -> str:
    if one.version is None:
        return f"{one.error} → {one.remedy}" if one.remedy else one.error or ""
    return f"{one.name}@{short(one.version.partition('@')[2])}"


# --- one version ------------------------------------------------------------------------------


@click.command()
@ref_argument()
@json_option
@quiet_option
def show(ref: str, as_json: bool, quiet: bool) -> None:
    """Everything that the registry knows of a version."""
    with open_registry() as registry:
        found = registry.show(ref)
    if as_json:
        output.print_json({**found, "recipe": _recipe(found)})
    elif quiet:
        click.echo(found["version"])
    else:
        _print_version(found)


def _print_version(found: Mapping[str, Any]) -> None:
    manifest, card, base = found["manifest"], found["card"], found["manifest"]["base"]
    tags = sorted(tag for tag, digest in found["tags"].items() if digest == found["digest"])
    at = found["base_at"]
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
            "trained on": base["quantization"],
            "base weights": base["weights_root"] or "not recorded: add it again with --base",
            "base at": f"{at['path']} ({at['name']})" if at else None,
            "adapter root": manifest["adapter_root"],
            "description": card.get("description"),
            "licence": card.get("licence"),
            "language": card.get("language"),
            "topics": card.get("topics"),
            "metrics": card.get("metrics"),
            "made by": lineage.made_by(found),
            "added from": _origin(found["origin"] or {}),
        },
        title=found["name"],
    )
    rows = [(e["path"], size(e["size"]), short(e["sha256"])) for e in manifest["files"]]
    output.print_table(("file", "size", "sha256"), rows, right=("size",))
    if len(found["versions"]) > 1:
        output.print_table(("version", "added", "tags"), _versions(found))
    if (recipe := _recipe(found)) is not None:
        from adapterhub.composing.recipe import to_yaml

        click.secho("made by this recipe (compose --recipe FILE):", bold=True)
        for line in to_yaml(recipe).splitlines():
            click.echo(f"  {output.clean(line)}")


def _recipe(found: Mapping[str, Any]) -> dict[str, Any] | None:
    from adapterhub.composing.recipe import recipe_of

    told = found["manifest"]["lineage"]
    return recipe_of(told) if told else None


def _origin(origin: Mapping[str, Any]) -> str | None:
    """A path, or a repository of a hub and its commit."""
    if "hub" not in origin:
        return origin.get("path")
    where = f"{origin['hub']}/{origin.get('subfolder', '')}".rstrip("/")
    at = f" of {origin['endpoint']}" if "endpoint" in origin else ""
    return f"{where} at {origin.get('commit', '')[:12]}{at}"


def _versions(found: Mapping[str, Any]) -> list[tuple[Any, ...]]:
    """The versions of the name, the newest first, with the tags that point at each."""
    return [
        (
            short(version["digest"]),
            when(version["added"]),
            sorted(tag for tag, digest in found["tags"].items() if digest == version["digest"]),
        )
        for version in reversed(found["versions"])
    ]


@click.command()
@ref_argument()
@json_option
def path(ref: str, as_json: bool) -> None:
    """Print a PEFT directory of a version, for other tools."""
    with open_registry() as registry:
        found = registry.path(ref)
    if as_json:
        output.print_json({"path": str(found)})
    else:
        click.echo(found)


@click.command()
@ref_argument()
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
@ref_argument("left")
@ref_argument("right")
@json_option
def diff(left: str, right: str, as_json: bool) -> None:
    """What differs between two versions; exit code 1 if anything does."""
    with open_registry() as registry:
        found = registry.diff(left, right)
    if as_json:
        output.print_json(found.to_dict())
    else:
        if rows := differing.rows(found, {"rank": spread}, {"lineage": lineage.brief}):
            output.print_table(("", short_ref(found.left), short_ref(found.right)), rows)
        click.echo(f"tensors: {found.same} equal, {len(found.changed)} with other values")
    if not found.equal:
        click.get_current_context().exit(1)


COMMANDS = (inspect, add, show, path, export, diff)
