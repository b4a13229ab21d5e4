"""What commands share: opening the registry, refs as arguments and their completion."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

import click

from adapterhub.cli.output import note, short
from adapterhub.errors import AdapterHubError

if TYPE_CHECKING:
    from click.shell_completion import CompletionItem

    from adapterhub.registry import Registry

F = TypeVar("F", bound=Callable[..., Any])
MOST = 100


def open_registry() -> Registry:
    from adapterhub import api

    return api.open(on_note=note)


def short_ref(version: str) -> str:
    """`name@sha256:` and 12 digits; a path stays as it is."""
    name, at, digest = version.rpartition("@")
    return f"{name}@{short(digest)}" if at and digest.startswith("sha256:") else version


def ref_argument(name: str = "ref", *, metavar: str = "REF", **options: Any) -> Callable[[F], F]:
    """An argument that the shell completes with the registry's names."""
    return click.argument(name, metavar=metavar, shell_complete=_names, **options)


def adapter_argument(name: str, *, metavar: str, **options: Any) -> Callable[[F], F]:
    """As `ref_argument`; the shell's own completion of files goes first where it has any."""
    return click.argument(name, metavar=metavar, shell_complete=_names_or_files, **options)


def _names(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
    from click.shell_completion import CompletionItem

    from adapterhub.store import Store

    try:
        with Store() as store:
            name, colon, start = incomplete.partition(":")
            found = store.names(incomplete, MOST)
            if colon:
                tags = sorted(store.state(name).tags)
                found = tuple(f"{name}:{tag}" for tag in tags if tag.startswith(start))
    except AdapterHubError:  # the command itself will say what is wrong
        return []
    return [CompletionItem(each) for each in found]


def _names_or_files(
    ctx: click.Context, param: click.Parameter, incomplete: str
) -> list[CompletionItem]:
    from click.shell_completion import CompletionItem

    return _names(ctx, param, incomplete) or [CompletionItem(incomplete, type="file")]
