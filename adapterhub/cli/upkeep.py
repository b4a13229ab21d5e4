"""verify, gc, reindex, env."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from adapterhub.cli import output
from adapterhub.cli.adapters import open_registry
from adapterhub.cli.output import json_option, progress, size


@click.command()
@click.argument("what", metavar="[REF|DIR]", required=False)
@json_option
def verify(what: str | None, as_json: bool) -> None:
    """Is everything still what it was? A version, a merged directory, or the whole registry."""
    if what is not None and _is_directory(what):
        result = _verify_directory(what)
    else:
        with open_registry() as registry, progress("verify", unit_bytes=False) as advance:
            result = registry.verify(what, advance)
    if as_json:
        output.print_json(result)
    else:
        for problem in result["problems"]:
            click.secho(f"✗ {output.clean(problem)}", fg="red")
        if not result["problems"]:
            counts = ", ".join(f"{n} {k}" for k, n in result.items() if k != "problems")
            click.secho(f"✓ whole: {counts}", fg="green")
    if result["problems"]:
        click.get_current_context().exit(1)


def _is_directory(what: str) -> bool:
    return "@" not in what and Path(what).expanduser().is_dir()


def _verify_directory(what: str) -> dict[str, Any]:
    from adapterhub import api

    with progress("verify") as advance:
        problems = api.verify_directory(Path(what).expanduser(), advance)
    return {"directories": 1, "problems": problems}


@click.command()
@click.option("--dry-run", is_flag=True, help="Only say what would go.")
@json_option
def gc(dry_run: bool, as_json: bool) -> None:
    """Free the space of versions removed more than 30 days ago, and of interrupted work."""
    from dataclasses import asdict

    with open_registry() as registry:
        report = registry.gc(dry_run=dry_run)
    if as_json:
        output.print_json(asdict(report))
        return
    verb = "would free" if dry_run else "freed"
    click.echo(
        f"{verb} {size(report.bytes_freed)}: {report.manifests} versions, {report.blobs} files; "
        f"{report.manifests_kept} versions stay"
    )


@click.command()
@json_option
def reindex(as_json: bool) -> None:
    """Build the index anew from manifests and refs."""
    with open_registry() as registry:
        names = registry.reindex()
    if as_json:
        output.print_json({"names": names})
    else:
        click.echo(f"indexed {names} names")


@click.command()
@json_option
def env(as_json: bool) -> None:
    """Versions, places and limits: what to put into a bug report."""
    from adapterhub import api

    facts = api.environment()
    if as_json:
        output.print_json(facts)
    else:
        output.print_facts(facts)


COMMANDS = (verify, gc, reindex, env)
