"""Printing: tables for people, JSON for programs, progress and errors to stderr.

What strangers wrote (names, cards, keys) is printed without its control characters, so that no
adapter can write to the terminal.
"""

from __future__ import annotations

import json
import re
import shutil
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Literal, TypeVar

import click

from adapterhub.errors import AdapterHubError

if TYPE_CHECKING:
    from rich.table import Table

SCHEMA = 1
ARGS = "adapterhub.args"
PIPE_COLUMNS = 10_000
MANY_DETAILS = 12  # of an error; from there on those that are alike share a line
_REF = re.compile(r"(@sha256:[0-9a-f]{12})[0-9a-f]{52}\b")
_LAYER = re.compile(r"(?<=\.)\d+(?=[.:])")
F = TypeVar("F", bound=Callable[..., Any])
Progress = Callable[[int], None]


def json_option(function: F) -> F:
    return click.option("--json", "as_json", is_flag=True, help="Print JSON for programs.")(
        function
    )


def quiet_option(function: F) -> F:
    """Ids: `name@sha256:…`, or a base's name."""
    return click.option("-q", "--quiet", is_flag=True, help="Print ids only, one a line.")(function)


def note(text: str) -> None:
    click.echo(f"note: {clean(text)}", err=True)


def clean(text: str) -> str:
    """Without control characters; new lines and tabs become spaces."""
    return "".join(" " if c in "\n\t\r" else c for c in text if c.isprintable() or c in "\n\t\r")


# --- JSON -------------------------------------------------------------------------------------


def print_json(result: Any, *, key: str = "result") -> None:
    """`{"schema": 1, "command": …, "result": …}`; for errors the last key is `error`.

    What a terminal might obey is escaped; a program reads the same text.
    """
    document = {"schema": SCHEMA, "command": _command(), key: result}
    text = json.dumps(document, indent=2, ensure_ascii=False, default=_plain)
    click.echo("".join(c if c.isprintable() or c == "\n" else _escaped(c) for c in text))


def _escaped(character: str) -> str:
    return json.dumps(character)[1:-1]


def _command() -> str:
    """`base add`: the command that was asked for, also where it was not reached."""
    context = click.get_current_context(silent=True)
    if context is None:
        return ""
    words: list[str] = []
    command: click.Command | None = context.find_root().command
    for word in context.find_root().meta.get(ARGS, ()):
        if not isinstance(command, click.Group):
            break
        command = command.commands.get(word)
        words += [word] if command else []
    return " ".join(words)


def wants_json() -> bool:
    """Whether `--json` stands among the arguments, before any `--`."""
    context = click.get_current_context(silent=True)
    args = context.find_root().meta.get(ARGS, ()) if context else ()
    return "--json" in args[: args.index("--") if "--" in args else len(args)]


def usage(error: click.UsageError) -> dict[str, Any]:
    """A mistake on the command line, as an error in JSON."""
    help_line = f"adapterhub {_command()} --help".replace("  ", " ")
    return {"code": "usage", "message": error.format_message(), "details": [], "remedy": help_line}


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return dict(value)
    if isinstance(value, (tuple, set, frozenset)):
        return list(value)
    return str(value)


def print_error(error: AdapterHubError) -> None:
    """One line, its details and the remedy, to stderr; with `--json` a document to stdout."""
    if wants_json():
        print_json(
            {
                "code": error.code,
                "message": error.message,
                "details": list(error.details),
                "remedy": error.remedy,
            },
            key="error",
        )
        return
    click.secho("error: ", fg="red", bold=True, nl=False, err=True)
    click.echo(for_people(error.message), err=True)
    for detail in _grouped(error.details):
        click.echo(f"  - {for_people(detail)}", err=True)
    if error.remedy:
        click.secho("  → ", fg="green", nl=False, err=True)
        click.echo(for_people(error.remedy), err=True)


def for_people(text: str) -> str:
    """Digests of refs as short as `short` makes them, which every command takes."""
    return _REF.sub(r"\1", clean(text))


def _grouped(details: Sequence[str]) -> list[str]:
    """Many sentences that differ in numbers of layers only become one each, with their count."""
    if len(details) <= MANY_DETAILS:
        return list(details)
    groups: dict[str, list[str]] = {}
    for detail in details:
        groups.setdefault(_LAYER.sub("*", detail), []).append(detail)
    return [
        f"{starred} ({len(alike)} of them)" if len(alike) > 1 else alike[0]
        for starred, alike in groups.items()
    ]


# --- tables -----------------------------------------------------------------------------------


def columns() -> int:
    """Those of the terminal; in a file or pipe a line may be as long as it likes."""
    return shutil.get_terminal_size().columns if sys.stdout.isatty() else PIPE_COLUMNS


def _print(table: Table) -> None:
    """To a terminal in its width and colours; to a file or pipe as wide as it is, plain."""
    from rich.console import Console

    if sys.stdout.isatty():
        Console(highlight=False).print(table)
        return
    console = Console(width=PIPE_COLUMNS, highlight=False, color_system=None, no_color=True)
    with console.capture() as capture:
        console.print(table)
    for line in capture.get().splitlines():
        click.echo(line.rstrip())


def print_table(
    columns: Sequence[str],
    rows: Iterable[Sequence[Any]],
    *,
    right: Sequence[str] = (),
    whole: Sequence[str] = (),
) -> None:
    """A table with a header; the columns in `right` are right-aligned, those in `whole` unbroken,
    however narrow the terminal is.
    """
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 2, 0, 0))
    for column in columns:
        side: Literal["right", "left"] = "right" if column in right else "left"
        table.add_column(column, justify=side, overflow="fold", no_wrap=column in whole)
    for row in rows:
        table.add_row(*(Text(cell(value)) for value in row))
    _print(table)


def print_facts(facts: Mapping[str, Any], *, title: str = "") -> None:
    """Two columns, name and value; empty values are left out."""
    from rich.table import Table
    from rich.text import Text

    if title:
        click.secho(clean(title), bold=True)
    table = Table(box=None, show_header=False, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column(style="dim", no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in facts.items():
        if value not in (None, "", (), [], {}):
            table.add_row(name, Text(cell(value)))
    _print(table)


def cell(value: Any) -> str:
    if value is None:
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, (list, tuple)):
        return ", ".join(cell(item) for item in value)
    if isinstance(value, Mapping):
        return ", ".join(f"{key}: {cell(item)}" for key, item in value.items())
    return clean(str(value))


def plural(count: int, thing: str) -> str:
    """`1 file`, `1,204 files`."""
    return f"{count:,} {thing}{'' if count == 1 else 's'}"


def size(nbytes: int | None) -> str:
    """`1.2 MB`, in powers of ten."""
    if nbytes is None:
        return "–"
    value = float(nbytes)
    for unit in ("B", "kB", "MB", "GB"):
        if value < 1000:
            return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1000
    return f"{value:.1f} TB"


def short(digest: str | None) -> str:
    """`sha256:` and the first 12 digits: enough to type, and unique in practice."""
    return digest[:19] if digest else "–"


def when(stamp: str | None, *, seconds: bool = False) -> str:
    """`2026-11-21 14:03` of an ISO time in UTC."""
    return stamp[: 19 if seconds else 16].replace("T", " ") if stamp else "–"


# --- progress ---------------------------------------------------------------------------------


class Bar:
    """A progress bar on stderr that shows itself only once the work has taken a second."""

    DELAY_SECONDS = 1.0

    def __init__(self, title: str, total: int | None, *, unit_bytes: bool) -> None:
        self.title, self.total, self.unit_bytes = title, total, unit_bytes
        self._started = time.monotonic()
        self._done = 0
        self._bar: Any = None
        self._task: Any = None

    def advance(self, amount: int) -> None:
        self._done += amount
        if self._bar is not None:
            self._bar.update(self._task, completed=self._done)
        elif sys.stderr.isatty() and time.monotonic() - self._started > self.DELAY_SECONDS:
            self._show()

    def _show(self) -> None:
        from rich.console import Console
        from rich.progress import (
            BarColumn,
            DownloadColumn,
            MofNCompleteColumn,
            Progress,
            TextColumn,
            TimeRemainingColumn,
            TransferSpeedColumn,
        )

        counts = (
            [DownloadColumn(), TransferSpeedColumn()] if self.unit_bytes else [MofNCompleteColumn()]
        )
        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            *counts,
            TimeRemainingColumn(),
            console=Console(stderr=True),
            transient=True,
        )
        self._task = self._bar.add_task(self.title, total=self.total, completed=self._done)
        self._bar.start()

    def close(self) -> None:
        if self._bar is not None:
            self._bar.stop()


@contextmanager
def progress(
    title: str, total: int | None = None, *, unit_bytes: bool = True
) -> Iterator[Progress]:
    """A function to be told of bytes (or things) done."""
    bar = Bar(title, total, unit_bytes=unit_bytes)
    try:
        yield bar.advance
    finally:
        bar.close()
