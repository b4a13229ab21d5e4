"""The command line: each command parses, makes one call, and prints."""

from __future__ import annotations

import io
import sys
from collections.abc import Sequence
from typing import Any

import click

from adapterhub import __version__
from adapterhub.cli import (
    adapters,
    bases,
    comparing,
    composing,
    listing,
    merging,
    names,
    output,
    pulling,
    pushing,
    resizing,
    serving,
    tables,
    tokens,
    upkeep,
)
from adapterhub.errors import AdapterHubError


class Main(click.Group):
    """Turns a named error into exit code 1 and a remedy; other exceptions keep their traceback."""

    def main(self, args: Sequence[str] | None = None, *rest: Any, **options: Any) -> Any:
        for stream in (sys.stdout, sys.stderr):
            if isinstance(stream, io.TextIOWrapper):  # a terminal that is not in UTF-8
                stream.reconfigure(errors="backslashreplace")
        return super().main(args, *rest, **options)

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        ctx.meta[output.ARGS] = tuple(args)
        return super().parse_args(ctx, args)

    def invoke(self, ctx: click.Context) -> object:
        try:
            return super().invoke(ctx)
        except AdapterHubError as error:
            output.print_error(error)
            ctx.exit(1)
        except click.UsageError as error:
            if not output.wants_json():
                raise
            output.print_json(output.usage(error), key="error")
            ctx.exit(error.exit_code)

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(self.commands)  # in the order of DESIGN §7, not of the alphabet


@click.group(cls=Main, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="adapterhub")
def main() -> None:
    """Keep adapters, find them, merge them, and know which base they belong to.

    The registry lives in $ADAPTERHUB_HOME, or in your user's data directory. A REF is NAME,
    NAME:TAG or NAME@sha256:…; an ADAPTER is a ref or a path; a BASE is a registered base, a
    directory, or a Hub id in the Hugging Face cache.
    """


_ADAPTERS = (adapters.inspect, adapters.add, *listing.COMMANDS, *adapters.COMMANDS[2:])
_HUB = (pushing, pulling, serving, tokens)
_COMPOSING = (composing, comparing, resizing)
_MODULES = (names, upkeep, bases, merging, *_COMPOSING, *_HUB, tables)
_REST = (module.COMMANDS for module in _MODULES)
for _command in (*_ADAPTERS, *(command for commands in _REST for command in commands)):
    main.add_command(_command)
