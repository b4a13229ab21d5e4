"""edit, mv, rm, tag, untag, history, rollback."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

import click

from adapterhub.cli import output
from adapterhub.cli.opening import open_registry, ref_argument
from adapterhub.cli.output import json_option, quiet_option, short, when
from adapterhub.errors import InvalidOption

if TYPE_CHECKING:
    from adapterhub.store import Event, Outcome


def _print_outcome(outcome: Outcome, text: str, as_json: bool, quiet: bool) -> None:
    if quiet and not as_json:
        if outcome.digest:
            click.echo(f"{outcome.name}@{outcome.digest}")
    elif as_json:
        output.print_json(
            {
                "name": outcome.name,
                "status": outcome.status,
                "digest": outcome.digest,
                "previous": outcome.previous,
            }
        )
    elif outcome.status == "unchanged":
        click.echo(f"{outcome.name}: nothing to change")
    else:
        click.echo(text)


def _was(outcome: Outcome) -> str:
    return f", was {short(outcome.previous)}" if outcome.previous else ""


@click.command()
@ref_argument()
@click.option("--description", help="One line of text.")
@click.option("--licence", help="An SPDX id as the Hub spells it: apache-2.0, mit, llama3.1 …")
@click.option("--language", "languages", multiple=True, help="en, de, …; repeatable.")
@click.option("--topic", "topics", multiple=True, help="Repeatable; replaces all topics.")
@click.option("--metric", "metrics", multiple=True, metavar="NAME=VALUE", help="Repeatable.")
@click.option("--unset", multiple=True, metavar="FIELD", help="Remove a field; repeatable.")
@json_option
@quiet_option
def edit(
    ref: str,
    description: str | None,
    licence: str | None,
    languages: tuple[str, ...],
    topics: tuple[str, ...],
    metrics: tuple[str, ...],
    unset: tuple[str, ...],
    as_json: bool,
    quiet: bool,
) -> None:
    """Change what the card of a name says."""
    fields: dict[str, Any] = {
        "description": description,
        "licence": licence,
        "language": list(languages) or None,
        "topics": list(topics) or None,
        "metrics": _metrics(metrics) or None,
    }
    given = {field: value for field, value in fields.items() if value is not None}
    if not given and not unset:
        raise click.UsageError("Nothing to change was given.")
    with open_registry() as registry:
        outcome = registry.edit(ref, given, unset)
    changed = ", ".join([*given, *(f"no {field}" for field in unset)])
    _print_outcome(outcome, f"{outcome.name}: {changed}", as_json, quiet)


def _metrics(texts: tuple[str, ...]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for text in texts:
        name, equals, value = text.partition("=")
        try:
            found[name] = float(value)
        except ValueError:
            equals = ""
        if not name or not equals:
            raise InvalidOption(f"{text!r} is not NAME=NUMBER", remedy="--metric f1=0.93")
    return found


@click.command()
@ref_argument("old", metavar="NAME")
@click.argument("new", metavar="NEW_NAME")
@json_option
@quiet_option
def mv(old: str, new: str, as_json: bool, quiet: bool) -> None:
    """Rename; versions, tags and history go along."""
    with open_registry() as registry:
        outcome = registry.mv(old, new)
    _print_outcome(outcome, f"{old} is now {new}", as_json, quiet)


@click.command()
@ref_argument(metavar="NAME[@DIGEST]")
@click.option("-y", "--yes", is_flag=True, help="Do not ask.")
@json_option
@quiet_option
def rm(ref: str, yes: bool, as_json: bool, quiet: bool) -> None:
    """Remove a name, or one version of it. It can be undone for 30 days."""
    with open_registry() as registry:
        if not (yes or "@" in ref or ":" in ref):
            _ask(ref, len(registry.show(ref)["versions"]), as_json)
        outcome = registry.rm(ref)
    if outcome.digest is None:
        undo = f"adapterhub rollback {outcome.name} latest"
    else:
        undo = f"adapterhub tag {outcome.name}@{short(outcome.previous)} latest"
    _print_outcome(outcome, f"removed {ref}; undo: {undo}", as_json, quiet)


def _ask(name: str, versions: int, as_json: bool) -> None:
    """Raises UsageError where nobody can answer, Abort where somebody says no."""
    if as_json or not sys.stdin.isatty():
        raise click.UsageError("rm asks before it removes a name; say --yes to remove it.")
    question = f"Remove {name} with {output.plural(versions, 'version')}?"
    click.confirm(question, abort=True, err=True)


@click.command()
@ref_argument()
@click.argument("tag")
@json_option
@quiet_option
def tag(ref: str, tag: str, as_json: bool, quiet: bool) -> None:
    """Move TAG to a version, in one step: `tag ner production`."""
    with open_registry() as registry:
        outcome = registry.tag(ref, tag)
    text = f"{outcome.name}:{tag} is now {short(outcome.digest)}{_was(outcome)}"
    _print_outcome(outcome, text, as_json, quiet)


@click.command()
@ref_argument("name", metavar="NAME")
@click.argument("tag")
@json_option
@quiet_option
def untag(name: str, tag: str, as_json: bool, quiet: bool) -> None:
    """Take a tag away; the version stays."""
    with open_registry() as registry:
        outcome = registry.untag(name, tag)
    _print_outcome(outcome, f"{name}:{tag} is gone, was {short(outcome.previous)}", as_json, quiet)


@click.command()
@ref_argument("name", metavar="NAME")
@click.argument("tag")
@click.option("--to", metavar="DIGEST", help="Back to this version instead of the previous one.")
@json_option
@quiet_option
def rollback(name: str, tag: str, to: str | None, as_json: bool, quiet: bool) -> None:
    """Move a tag back to the version before, or undo `rm NAME`."""
    with open_registry() as registry:
        outcome = registry.rollback(name, tag, to)
    text = f"{name}:{tag} is back at {short(outcome.digest)}{_was(outcome)}"
    _print_outcome(outcome, text, as_json, quiet)


@click.command()
@ref_argument("name", metavar="NAME")
@json_option
def history(name: str, as_json: bool) -> None:
    """Who moved which tag, from where to where, and when."""
    with open_registry() as registry:
        events = registry.history(name)
    if as_json:
        output.print_json(
            [{"event": e.kind, "when": e.when, "who": e.who, **e.fields} for e in events]
        )
        return
    rows = [(when(event.when, seconds=True), event.who, *_event(event)) for event in events]
    output.print_table(("when", "who", "what", "from", "to"), rows)


def _event(event: Event) -> tuple[str, str, str]:
    fields = event.fields
    if event.kind == "tag":
        return (
            f"{fields.get('op', 'tag')} {fields['tag']}",
            short(fields["from"]),
            short(fields["to"]),
        )
    if event.kind == "card":
        changed = [*fields.get("set", {}), *(f"no {field}" for field in fields.get("unset", ()))]
        return (f"edit {', '.join(changed)}", "", "")
    if event.kind == "rename":
        return ("rename", str(fields.get("from_name")), str(fields.get("to_name")))
    what = short(fields["digest"]) if fields.get("digest") else "every version"
    return (event.kind, what, "") if event.kind == "remove" else (event.kind, "", what)


COMMANDS = (edit, mv, rm, tag, untag, history, rollback)
