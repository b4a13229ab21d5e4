"""pull."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from typing import TYPE_CHECKING

import click

from adapterhub.cli import output
from adapterhub.cli.opening import open_registry
from adapterhub.cli.output import json_option, note, plural, progress, quiet_option, short, size

if TYPE_CHECKING:
    from adapterhub.hub.client.pulling import Pulled, PullPlan


@click.command()
@click.argument("repository", metavar="REPO[/SUBFOLDER]")
@click.option("--revision", help="A branch, tag or commit; by default the main branch.")
@click.option("--name", help="Name in the registry; by default that of the repository.")
@click.option("--all", "all_", is_flag=True, help="Take every adapter of the repository.")
@click.option("--tag", "tags", multiple=True, help="A tag to move to it too; repeatable.")
@click.option("--allow-pickle", is_flag=True, help="Take .bin files, stored as safetensors.")
@json_option
@quiet_option
def pull(
    repository: str,
    revision: str | None,
    name: str | None,
    all_: bool,
    tags: tuple[str, ...],
    allow_pickle: bool,
    as_json: bool,
    quiet: bool,
) -> None:
    """Take an adapter from a hub: its data only, every file hashed.

    HF_ENDPOINT names the hub, HF_TOKEN (or `hf auth login`) signs in. A repository that holds
    several adapters is listed; name one, or take all. Offline (HF_HUB_OFFLINE=1), what was
    downloaded before is found.
    """
    from adapterhub import api

    with open_registry() as registry, ExitStack() as bars:

        def on_plan(plan: PullPlan) -> output.Progress | None:
            if not plan.chosen and not as_json:
                _print_found(plan)
            return bars.enter_context(progress("downloading", plan.bytes))

        listing = bars.enter_context(progress("listing", unit_bytes=False))
        pulled = api.pull(
            repository,
            revision=revision,
            name=name,
            all=all_,
            tag=tags,
            allow_pickle=allow_pickle,
            registry=registry,
            on_plan=on_plan,
            on_list=listing,
        )
    if as_json:
        output.print_json([one.to_dict() for one in pulled])
    elif quiet:
        for one in pulled:
            if one.version:
                click.echo(one.version)
    elif all_:
        _print_all(pulled)
    else:
        _print_one(pulled[0])
    if all(one.status == "refused" for one in pulled):
        click.get_current_context().exit(1)


def _print_found(plan: PullPlan) -> None:
    rows = [(f.path or ".", f.format, f.method, f.base, size(f.bytes)) for f in plan.found]
    output.print_table(("subfolder", "format", "method", "base", "size"), rows, right=("size",))


_STATUS = {
    "added": "pulled",
    "updated": "already there, its tags or card changed",
    "unchanged": "already there, nothing changed",
}


def _print_one(one: Pulled) -> None:
    click.echo(f"{_STATUS[one.status]}: {_version(one)}")
    facts = f"{one.method}, {one.parameters or 0:,} parameters, {size(one.bytes)}"
    click.echo(f"  {facts}, base {output.clean(one.base or 'unknown')}")
    came = f"{size(one.downloaded)} downloaded" if one.downloaded else "nothing downloaded"
    origin = one.origin
    click.echo(f"  {output.clean(origin.shown)} at {origin.commit[:12]} ({came})")
    for text in one.notes:
        note(text)


def _print_all(pulled: Sequence[Pulled]) -> None:
    rows = [(one.origin.path or ".", one.status, _version(one)) for one in pulled]
    output.print_table(("subfolder", "status", "version or reason"), rows)
    for text in dict.fromkeys(text for one in pulled for text in one.notes):
        note(text)
    if refused := sum(one.status == "refused" for one in pulled):
        note(f"{len(pulled) - refused} of {plural(len(pulled), 'adapter')} pulled")


def _version(one: Pulled) -> str:
    if one.version is None:
        return f"{one.error} → {one.remedy}" if one.remedy else one.error or ""
    return f"{one.name}@{short(one.version.partition('@')[2])}"


COMMANDS = (pull,)
