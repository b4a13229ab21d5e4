"""verify, gc, reindex, env."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from adapterhub.cli import output
from adapterhub.cli.opening import adapter_argument, open_registry
from adapterhub.cli.output import json_option, plural, progress, size

_ONE = {"versions": "version", "files": "file", "directories": "directory"}


@click.command()
@adapter_argument("what", metavar="[REF|DIR]", required=False)
@json_option
def verify(what: str | None, as_json: bool) -> None:
    """Is everything still what it was? Exit code 1 if not.

    A version, a merged or exported directory, or without an argument the whole registry.
    """
    with open_registry() as registry:
        directory = registry.as_path(what) if what is not None else None
        if directory is not None:
            result = _verify_directory(directory)
        else:
            with progress("verifying files", unit_bytes=False) as advance:
                result = registry.verify(what, advance)
    if as_json:
        output.print_json(result)
    else:
        for problem in result["problems"]:
            click.secho(f"✗ {output.clean(problem)}", fg="red")
        if not result["problems"]:
            counts = [plural(n, _ONE[k]) for k, n in result.items() if k in _ONE]
            click.secho(f"✓ whole: {', '.join(counts)}", fg="green")
    if result["problems"]:
        click.get_current_context().exit(1)


def _verify_directory(directory: Path) -> dict[str, Any]:
    from adapterhub import api

    with progress("verifying") as advance:
        problems = api.verify_directory(directory, advance)
    return {"directories": 1, "problems": problems}


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
