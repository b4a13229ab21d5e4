"""token create, list, revoke: who may use the hub of this home."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from typing import TYPE_CHECKING

import click

from adapterhub.cli import output
from adapterhub.cli.opening import open_registry
from adapterhub.cli.output import json_option, quiet_option

if TYPE_CHECKING:
    from adapterhub.hub.state.model import Token
    from adapterhub.hub.state.tokens import Tokens

_DAYS = {"s": 1 / 86400, "m": 1 / 1440, "h": 1 / 24, "d": 1.0, "w": 7.0}
_SPAN = re.compile(r"([0-9]{1,6})([smhdw])")


def _days(ctx: click.Context, param: click.Parameter, value: str | None) -> float | None:
    """`90d`, `12h`: a time from now on, in days."""
    if value is None:
        return None
    found = _SPAN.fullmatch(value)
    if found is None:
        raise click.BadParameter(f"{value!r} is no time such as 90d, 12h, 30m or 45s")
    return int(found[1]) * _DAYS[found[2]]


@contextmanager
def _tokens() -> Iterator[Tokens]:
    from adapterhub.hub.state.state import Hub

    with open_registry() as registry, Hub(registry.store) as hub:
        yield hub.tokens


@click.group()
def token() -> None:
    """Tokens with which clients sign in to the hub that `serve` runs."""


@token.command()
@click.argument("name", default="", metavar="[NAME]")
@click.option("--write/--read", default=False, help="May it write? Without either: read.")
@click.option(
    "--namespace",
    "namespaces",
    multiple=True,
    default=("*",),
    show_default=True,
    help="Where it counts; may be given several times.",
)
@click.option("--expires", metavar="TIME", callback=_days, help="90d, 12h …; otherwise never.")
@json_option
def create(
    name: str, write: bool, namespaces: tuple[str, ...], expires: float | None, as_json: bool
) -> None:
    """Make a token and print it, this once.

    NAME is who has it: the author of what they commit, by default you.
    """
    role = "write" if write else "read"
    with _tokens() as tokens:
        made, secret = tokens.create(name or _user(), role, namespaces, days=expires)
    if as_json:
        output.print_json({**asdict(made), "secret": secret})
        return
    click.echo(secret)
    output.note(f"{_sentence(made)}; it is kept here as a hash only: nobody can show it again")


def _user() -> str:
    """The one who runs this, as far as their name can be an author's."""
    import getpass

    try:
        name = getpass.getuser()
    except (OSError, KeyError):
        return "user"
    return re.sub(r"[^A-Za-z0-9]+", "-", name).strip("-")[:96] or "user"


def _sentence(made: Token) -> str:
    where = "all namespaces" if made.namespaces == ("*",) else ", ".join(made.namespaces)
    until = f", until {_when(made.expires)} UTC" if made.expires else ""
    does = "reads" if made.role == "read" else "reads and writes"
    return f"token {made.id} of {made.label} {does} {where}{until}"


@token.command(name="list")
@json_option
@quiet_option
def list_tokens(as_json: bool, quiet: bool) -> None:
    """All tokens, revoked and expired ones too; never their secrets."""
    with _tokens() as tokens:
        found = tokens.list()
    if as_json:
        output.print_json([{**asdict(each), "state": _state(each)} for each in found])
        return
    if quiet:
        for each in found:
            click.echo(each.id)
        return
    if not found:
        click.echo("No tokens: adapterhub token create NAME --write makes one.")
        return
    output.print_table(
        ("id", "name", "role", "where", "created", "last used", "state"),
        [
            (
                each.id,
                each.label,
                each.role,
                ", ".join(each.namespaces).replace("*", "all"),
                _day(each.created),
                _day(each.used),
                _until(each),
            )
            for each in found
        ],
        whole=("id",),
    )


@token.command()
@click.argument("id")
@json_option
def revoke(id: str, as_json: bool) -> None:
    """Let nobody in with this token any more; ID as `token list` shows it."""
    with _tokens() as tokens:
        ended = tokens.revoke(id)
    if as_json:
        output.print_json(asdict(ended))
        return
    click.echo(f"token {ended.id} of {ended.label} is revoked")


def _state(each: Token) -> str:
    if each.revoked is not None:
        return "revoked"
    return "expired" if each.expires is not None and each.expires <= time.time() else "valid"


def _until(each: Token) -> str:
    state = _state(each)
    return f"valid until {_when(each.expires)}" if state == "valid" and each.expires else state


def _day(moment: int | None) -> str | None:
    return None if moment is None else time.strftime("%Y-%m-%d", time.gmtime(moment))


def _when(moment: int | None) -> str | None:
    return None if moment is None else time.strftime("%Y-%m-%d %H:%M", time.gmtime(moment))


COMMANDS = (token,)
