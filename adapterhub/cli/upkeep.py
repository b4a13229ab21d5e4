"""verify, gc, reindex, env."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from typing import Any

import click

from adapterhub.cli import output
from adapterhub.cli.opening import adapter_argument, open_registry
from adapterhub.cli.output import json_option, plural, progress, size

_ONE = {"versions": "version", "files": "file", "directories": "directory"}


@click.command()
@adapter_argument("what", metavar="[REF|DIR]", required=False)
@click.option("--repeat", is_flag=True, help="Merge again, without writing, and compare.")
@click.option("--base", metavar="BASE", help="For --repeat, a base that is not registered.")
@click.option(
    "--adapter",
    "adapters",
    metavar="ADAPTER",
    multiple=True,
    help="For --repeat, where an adapter is now that was merged from a path; once for each.",
)
@json_option
def verify(
    what: str | None, repeat: bool, base: str | None, adapters: tuple[str, ...], as_json: bool
) -> None:
    """Is everything still what it was? Exit code 1 if not.

    A version, a merged or exported directory, or without an argument the whole registry.
    """
    with open_registry() as registry:
        directory = registry.as_path(what) if what is not None else None
        if repeat and directory is None:
            raise click.UsageError("--repeat takes the directory of a merge.")
        if not repeat and (base or adapters):
            raise click.UsageError("--base and --adapter go with --repeat.")
        if directory is not None:
            result = _verify_directory(
                directory, repeat, registry=registry, base=base, adapters=adapters
            )
        else:
            with progress("verifying files", unit_bytes=False) as advance:
                result = registry.verify(what, advance)
    _print_result(result, as_json)
    if result["problems"]:
        click.get_current_context().exit(1)


def _print_result(result: dict[str, Any], as_json: bool) -> None:
    if as_json:
        output.print_json(result)
        return
    for problem in result["problems"]:
        click.secho(f"✗ {output.clean(problem)}", fg="red")
    if not result["problems"]:
        counts = [plural(n, _ONE[k]) for k, n in result.items() if k in _ONE]
        again = ", and merging again gives the same bytes" if result.get("repeated") else ""
        click.secho(f"✓ whole: {', '.join(counts)}{again}", fg="green")


def _verify_directory(directory: Path, repeat: bool, **options: Any) -> dict[str, Any]:
    from adapterhub import api

    total = sum(path.stat().st_size for path in directory.glob("*.safetensors"))
    with progress("verifying", total) as advance, ExitStack() as later:
        bars: list[output.Progress] = []

        def repeating(amount: int) -> None:
            if not bars:  # the second bar begins when the first is full
                bars.append(later.enter_context(progress("merging again", total)))
            bars[0](amount)

        problems = api.verify_directory(
            directory, advance, repeat=repeat, repeating=repeating, **options
        )
    return {"directories": 1, "repeated": repeat and not problems, "problems": problems}


@click.command()
@click.option("--dry-run", is_flag=True, help="Only say what would go.")
@json_option
def gc(dry_run: bool, as_json: bool) -> None:
    """Free the space of versions removed over 30 days ago."""
    from dataclasses import asdict

    with open_registry() as registry:
        report = registry.gc(dry_run=dry_run)
    if as_json:
        output.print_json(asdict(report))
        return
    verb = "would free" if dry_run else "freed"
    gone = f"{plural(report.manifests, 'version')}, {plural(report.blobs, 'file')}"
    stay = f"{plural(report.manifests_kept, 'version')} kept"
    click.echo(f"{verb} {size(report.bytes_freed)}: {gone}; {stay}")


@click.command()
@json_option
def reindex(as_json: bool) -> None:
    """Build the index anew from manifests and refs."""
    with open_registry() as registry:
        names = registry.reindex()
    if as_json:
        output.print_json({"names": names})
    else:
        click.echo(f"indexed {plural(names, 'name')}")


@click.command()
@json_option
def env(as_json: bool) -> None:
    """Versions and places: what to put into a bug report."""
    from adapterhub import api

    facts = api.env()
    if as_json:
        output.print_json(facts)
    else:
        output.print_facts(facts)


COMMANDS = (verify, gc, reindex, env)
