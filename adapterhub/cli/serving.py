"""serve."""

from __future__ import annotations

import click

from adapterhub.cli import output
from adapterhub.cli.opening import open_registry
from adapterhub.cli.output import json_option


@click.command()
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen at.")
@click.option("--port", default=8080, show_default=True, help="0 takes a free one.")
@click.option(
    "--public-read",
    is_flag=True,
    help="Others read public repositories without a token; on loopback anybody does.",
)
@click.option("--url", default="", help="The address to tell clients, not the one they asked.")
@click.option("--behind-proxy", is_flag=True, help="Believe X-Forwarded-Proto and -Host.")
@click.option(
    "--log-level",
    default="info",
    show_default=True,
    type=click.Choice(("debug", "info", "warning", "error")),
    help="What goes to stderr, as JSON; `info` has a line for each request.",
)
@click.option("--max-file-size", metavar="SIZE", help="Of one file; 200GiB by default.")
@click.option("--max-repository-size", metavar="SIZE", help="All revisions; 2TiB by default.")
@click.option("--max-files", type=int, help="In one revision; 100,000 by default.")
@json_option
def serve(
    host: str,
    port: int,
    public_read: bool,
    url: str,
    behind_proxy: bool,
    log_level: str,
    max_file_size: str | None,
    max_repository_size: str | None,
    max_files: int | None,
    as_json: bool,
) -> None:
    """Serve the registry's home to Hugging Face clients.

    They need nothing but HF_ENDPOINT, the address that is printed, and a token in HF_TOKEN. It
    speaks plain HTTP: for other machines, put a proxy with TLS before it.
    """
    from adapterhub import api
    from adapterhub.hub.server.serving import Options
    from adapterhub.hub.state.limits import Limits

    with open_registry() as registry:

        def started(address: str) -> None:
            if as_json:
                output.print_json({"url": address, "home": registry.home})
            else:
                _greet(address, str(registry.home))

        given = {
            "file_size": api.parse_size(max_file_size),
            "repository_size": api.parse_size(max_repository_size),
            "files": max_files,
        }
        limits = Limits(**{name: value for name, value in given.items() if value is not None})
        options = Options(host, port, public_read, url, behind_proxy, log_level, limits=limits)
        api.serve(options, registry=registry, on_start=started)


def _greet(address: str, home: str) -> None:
    click.secho(f"Hub at {address}", bold=True)
    output.print_facts(
        {
            "home": home,
            "clients": f"export HF_ENDPOINT={address}",
            "a token": "adapterhub token create NAME --write, then export HF_TOKEN=…",
            "stop": "Ctrl-C",
        }
    )


COMMANDS = (serve,)
