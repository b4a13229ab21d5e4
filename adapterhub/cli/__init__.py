"""The command line: each command parses, makes one call, and prints."""

from __future__ import annotations

import sys

import click

from adapterhub import __version__
from adapterhub.cli import adapters, bases, merging, names, tables, upkeep
from adapterhub.cli.output import print_error
from adapterhub.errors import AdapterHubError


class Main(click.Group):
    """Turns a named error into exit code 1 and a remedy; other exceptions keep their traceback."""

    def invoke(self, ctx: click.Context) -> object:
        try:
            return super().invoke(ctx)
        except AdapterHubError as error:
            print_error(error)
            ctx.exit(1)
        except BrokenPipeError:  # `adapterhub list | head`
            sys.stderr.close()
            ctx.exit(1)

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


for _module in (adapters, names, upkeep, bases, merging, tables):
    for _command in _module.COMMANDS:
        main.add_command(_command)
