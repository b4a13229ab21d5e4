"""edit, mv, rm, tag, untag, history, rollback."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from adapterhub.cli import output
from adapterhub.cli.adapters import open_registry
from adapterhub.cli.output import json_option, short, when
from adapterhub.errors import InvalidOption

if TYPE_CHECKING:
    from adapterhub.store import Event, Outcome


def _print_outcome(outcome: Outcome, text: str, as_json: bool) -> None:
    if as_json:
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


@click.command()
@click.argument("ref")
@click.option("--description")
@click.option("--licence", help="An SPDX id as the Hub spells it: apache-2.0, mit, llama3.1 …")
@click.option("--language", "languages", multiple=True, help="en, de, …; repeatable.")
@click.option("--topic", "topics", multiple=True, help="Repeatable; replaces all topics.")
@click.option("--metric", "metrics", multiple=True, metavar="NAME=VALUE", help="Repeatable.")
@click.option("--unset", multiple=True, metavar="FIELD", help="Remove a field; repeatable.")
@json_option
def edit(
    ref: str,
    description: str | None,
    licence: str | None,
    languages: tuple[str, ...],
    topics: tuple[str, ...],
    metrics: tuple[str, ...],
    unset: tuple[str, ...],
    as_json: bool,
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
        raise InvalidOption("nothing to change was given", remedy="adapterhub edit --help")
    with open_registry() as registry:
        outcome = registry.edit(ref, given, unset)
    changed = ", ".join([*given, *(f"no {field}" for field in unset)])
    _print_outcome(outcome, f"{outcome.name}: {changed}", as_json)


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
@click.argument("old", metavar="NAME")
@click.argument("new", metavar="NEW_NAME")
@json_option
def mv(old: str, new: str, as_json: bool) -> None:
    """Rename; versions, tags and history go along."""
    with open_registry() as registry:
        outcome = registry.mv(old, new)
    _print_outcome(outcome, f"{old} is now {new}", as_json)


@click.command()
@click.argument("ref", metavar="NAME[@DIGEST]")
@click.option("-y", "--yes", is_flag=True, help="Do not ask.")
@json_option
def rm(ref: str, yes: bool, as_json: bool) -> None:
    """Remove a name, or one version of it. It can be undone for 30 days."""
    with open_registry() as registry:
        if not yes and "@" not in ref:
            versions = len(registry.show(ref)["versions"])
            click.confirm(f"Remove {ref} with {versions} version(s)?", abort=True, err=True)
        outcome = registry.rm(ref)
    if "@" in ref:
        undo = f"adapterhub tag {outcome.name}@{short(outcome.digest)} latest"
    else:
        undo = f"adapterhub rollback {outcome.name} latest"
    _print_outcome(outcome, f"removed {ref}; undo: {undo}", as_json)


@click.command()
@click.argument("ref")
@click.argument("tag")
@json_option
def tag(ref: str, tag: str, as_json: bool) -> None:
    """Move TAG to a version: `tag ner@sha256:… production`."""
    with open_registry() as registry:
        outcome = registry.tag(ref, tag)
    text = f"{outcome.name}:{tag} is now {short(outcome.digest)}, was {short(outcome.previous)}"
    _print_outcome(outcome, text, as_json)


@click.command()
@click.argument("name")
@click.argument("tag")
@json_option
def untag(name: str, tag: str, as_json: bool) -> None:
    """Take a tag away; the version stays."""
    with open_registry() as registry:
        outcome = registry.untag(name, tag)
    _print_outcome(outcome, f"{name}:{tag} is gone, was {short(outcome.previous)}", as_json)


@click.command()
@click.argument("name")
@click.argument("tag")
@click.option("--to", metavar="DIGEST", help="Back to this version instead of the previous one.")
@json_option
def rollback(name: str, tag: str, to: str | None, as_json: bool) -> None:
    """Move a tag back to the version that it meant before."""
    with open_registry() as registry:
        outcome = registry.rollback(name, tag, to)
    text = f"{name}:{tag} is back at {short(outcome.digest)}, was {short(outcome.previous)}"
    _print_outcome(outcome, text, as_json)


@click.command()
@click.argument("name")
@json_option
def history(name: str, as_json: bool) -> None:
    """Who moved which tag from where to where, and when; and edits of the card."""
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
    return (event.kind, "", short(fields.get("digest")))


COMMANDS = (edit, mv, rm, tag, untag, history, rollback)
