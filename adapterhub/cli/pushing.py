"""push."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from adapterhub.cli import output
from adapterhub.cli.opening import open_registry, ref_argument, short_ref
from adapterhub.cli.output import json_option, note, plural, quiet_option, size

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from adapterhub.hub.client import Finding, Pushed, PushPlan, PushResult
    from adapterhub.registry import Registry

_COMMIT_DIGITS = 12
_NAMED = 5
_SEEN_BY = {True: "its owners only", False: "everybody", None: "not known"}


@click.command()
@ref_argument()
@click.argument("repo", metavar="REPO")
@click.option("--revision", default="main", help="A branch; it is made where there is none.")
@click.option("--public", is_flag=True, help="A new repository is seen by everybody.")
@click.option("-m", "--message", help="The title of the commit.")
@click.option("--create-pr", is_flag=True, help="Open a pull request instead.")
@click.option("--dry-run", is_flag=True, help="Print the plan and send nothing.")
@click.option("--all", "everything", is_flag=True, help="All names of a namespace: NS OWNER.")
@json_option
@quiet_option
def push(
    ref: str,
    repo: str,
    dry_run: bool,
    everything: bool,
    as_json: bool,
    quiet: bool,
    **options: Any,
) -> None:
    """Send a version to a repository of a hub: OWNER/NAME.

    The hub is the one of HF_ENDPOINT, the token that of HF_TOKEN or of `hf auth login`. A new
    repository is private. What is there already is not sent again. With --all, every NS/NAME
    of the registry goes to OWNER/NAME.
    """
    from adapterhub import api

    with open_registry() as registry:
        if everything:
            _push_all(registry, ref, repo, as_json, quiet, dry_run=dry_run, **options)
            return
        if dry_run:
            plan = api.plan_push(ref, repo, registry=registry, **options)
            _print_plan(plan, as_json, quiet)
            if plan.errors:
                click.get_current_context().exit(1)
            return
        result = api.push(ref, repo, registry=registry, **options)
    _print_result(result, as_json, quiet)


def _print_result(result: PushResult, as_json: bool, quiet: bool) -> None:
    if as_json:
        output.print_json(result.to_dict())
        return
    if quiet:
        click.echo(f"{result.repo}@{result.commit}")
        return
    click.echo(output.clean(_sentence(result)))
    for text in (*result.notes, *(finding.sentence() for finding in result.findings)):
        note(text)


def _sentence(result: PushResult) -> str:
    version, commit = short_ref(result.version), (result.commit or "")[:_COMMIT_DIGITS]
    if result.status == "unchanged":
        made = f"; the {result.created} {result.revision} is new" if result.created else ""
        return f"{result.url} has {version} already, at commit {commit}: nothing was sent{made}"
    removed = f", {len(result.removed)} removed" if result.removed else ""
    kind = "" if result.private is None else " (private)" if result.private else " (public)"
    return (
        f"pushed {version} to {result.pull_request or result.url}{kind}: "
        f"{plural(len(result.sent), 'file')}{removed}, {size(result.bytes)}, commit {commit}"
    )


def _print_plan(plan: PushPlan, as_json: bool, quiet: bool) -> None:
    if as_json:
        output.print_json(plan.to_dict())
        return
    if quiet:
        for file in plan.sent:
            click.echo(output.clean(file.path))
        return
    output.print_facts(
        {
            "version": plan.version,
            "to": plan.url,
            "revision": plan.revision + (", as a pull request" if plan.create_pr else ""),
            "creates": f"the {plan.creates}" if plan.creates else None,
            "seen by": _SEEN_BY[plan.private],
            "on top of": plan.commit,
            "message": plan.message,
            "sends": f"{plural(len(plan.sent), 'file')}, {size(plan.bytes)}",
        },
        title="plan (nothing is sent)",
    )
    rows = [(file.path, size(file.size), file.status) for file in plan.files]
    output.print_table(("file", "size", "there"), rows, right=("size",))
    for text in plan.notes:
        note(text)
    _print_findings(plan.findings)


def _print_findings(findings: Iterable[Finding]) -> None:
    for finding in findings:
        colour = "red" if finding.is_error else "yellow"
        click.secho("✗ " if finding.is_error else "! ", fg=colour, nl=False)
        click.echo(output.clean(finding.message))
        click.echo(f"    → {output.clean(finding.remedy)}")


# --- --all ------------------------------------------------------------------------------------


def _push_all(
    registry: Registry, namespace: str, target: str, as_json: bool, quiet: bool, **options: Any
) -> None:
    from adapterhub import api

    pushed = []
    with output.progress("pushing", unit_bytes=False) as advance:
        for one in api.push_all(namespace, target, registry=registry, **options):
            pushed.append(one)
            advance(1)
    if as_json:
        output.print_json([one.to_dict() for one in pushed])
    elif quiet:
        for one in pushed:
            if one.result is not None:
                click.echo(f"{one.repo}@{one.result.commit}")
    else:
        output.print_table(
            ("name", "repository", "status", "sent", "commit or reason"),
            [_row(one) for one in pushed],
            right=("sent",),
        )
        failed = sum(one.status == "refused" for one in pushed)
        note(f"{plural(len(pushed), 'name')}, {failed} refused")
        for text in _warned(pushed):
            note(text)
    if any(one.status == "refused" for one in pushed):
        click.get_current_context().exit(1)


def _warned(pushed: Sequence[Pushed]) -> list[str]:
    """One line for each kind of warning, with the first name's remedy."""
    found: dict[str, list[tuple[str, Finding]]] = {}
    for one in pushed:
        told = one.result or one.plan
        for each in told.findings if told else ():
            if not each.is_error:
                found.setdefault(each.code, []).append((one.name, each))
    return [
        f"{', '.join(name for name, _ in each[:_NAMED])}{' …' if len(each) > _NAMED else ''}: "
        f"{each[0][1].sentence()}"
        for each in found.values()
    ]


def _row(one: Pushed) -> tuple[Any, ...]:
    if one.result is not None:
        commit = (one.result.commit or "")[:_COMMIT_DIGITS]
        return (one.name, one.repo, one.status, size(one.result.bytes), commit)
    if one.plan is not None:
        why = "; ".join(finding.sentence() for finding in one.plan.errors)
        return (one.name, one.repo, one.status, size(one.plan.bytes), why or None)
    error = one.error
    details = "; ".join(error.details) or error.message if error else ""
    return (one.name, one.repo, one.status, None, details)


COMMANDS = (push,)
