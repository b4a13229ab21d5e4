"""resize, extract."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from adapterhub.cli import output, truncation
from adapterhub.cli.opening import adapter_argument, open_registry, short_ref
from adapterhub.cli.output import json_option, plural, progress, quiet_option, short

if TYPE_CHECKING:
    from adapterhub.composing import Extracted, Resized

_MANY = 8  # names, from where on those that differ in numbers only are one


@click.command()
@adapter_argument("adapter", metavar="ADAPTER")
@click.option("--rank", type=int, help="Of each module at most; a lower one of its own stays.")
@click.option("--energy", type=float, help="The smallest rank that keeps this share: 0.99.")
@click.option("--uniform", is_flag=True, help="One rank for all modules, by the energy of all.")
@click.option("--name", help="A name in the registry; the result is its new version.")
@click.option("--out", type=click.Path(path_type=Path), help="Or a new directory.")
@click.option("--base", help="For methods that hang on the shapes of the weights.")
@click.option("--allow-pickle", is_flag=True, help="Read an adapter's .bin file.")
@json_option
@quiet_option
def resize(adapter: str, as_json: bool, quiet: bool, **options: Any) -> None:
    """Make a LoRA of another rank; LoHa, VeRA and others become one."""
    from adapterhub import api

    with open_registry() as registry, ExitStack() as bars:

        def on_plan(modules: int) -> output.Progress:
            return bars.enter_context(progress("resizing", modules, unit_bytes=False))

        made = api.resize(adapter, registry=registry, on_plan=on_plan, **options)
    if as_json:
        output.print_json(made.to_dict())
    elif quiet:
        click.echo(made.version or made.out)
    else:
        _print_resized(made)


@click.command()
@click.argument("base", metavar="BASE")
@click.argument("finetuned", metavar="FINETUNED")
@click.option("--rank", type=int, help="A LoRA of this rank.")
@click.option("--energy", type=float, help="A LoRA with this share of each delta: 0.9.")
@click.option("--biases-only", is_flag=True, help="BitFit: the biases instead of a LoRA.")
@click.option("--sparse", type=float, help="This share of all elements, those that changed most.")
@click.option(
    "--targets",
    multiple=True,
    metavar="NAME",
    help="Only these modules get factors: ends of paths, or patterns with *.",
)
@click.option(
    "--rest",
    type=click.Choice(["save", "refuse", "drop"]),
    default="save",
    show_default=True,
    help="What becomes of embeddings, norms, heads, biases that changed.",
)
@click.option("--name", help="A name in the registry; the result is its new version.")
@click.option("--out", type=click.Path(path_type=Path), help="Or a new directory.")
@json_option
@quiet_option
def extract(base: str, finetuned: str, as_json: bool, quiet: bool, **options: Any) -> None:
    """Make an adapter of what a fine-tuning did to its BASE."""
    from adapterhub import api

    with open_registry() as registry, ExitStack() as bars:

        def on_plan(nbytes: int) -> tuple[output.Progress, output.Progress]:
            hashing = bars.enter_context(progress("hashing both", nbytes))
            return hashing, bars.enter_context(progress("extracting", nbytes))

        made = api.extract(base, finetuned, registry=registry, on_plan=on_plan, **options)
    if as_json:
        output.print_json(made.to_dict())
    elif quiet:
        click.echo(made.version or made.out)
    else:
        _print_extracted(made)


def _print_resized(made: Resized) -> None:
    click.secho(f"resized {short_ref(made.version or str(made.out))}", bold=True)
    output.print_facts(
        {
            "of": f"{short_ref(made.input)}, {made.method}",
            "modules": len(made.modules),
            "rank": truncation.ranks(made.modules),
            "truncation": truncation.said(made.error),
            "same bits": "on every machine" if made.reproducible else "on one machine only",
            "notes": made.notes,
        }
    )
    truncation.print_worst(made.modules)


def _print_extracted(made: Extracted) -> None:
    click.secho(f"extracted {short_ref(made.version or str(made.out))}", bold=True)
    output.print_facts(
        {
            "method": made.method,
            "base": short(made.base_root),
            "fine-tuned": short(made.tuned_root),
            "modules": len(made.modules) or None,
            "rank": truncation.ranks(made.modules),
            "truncation": truncation.said(made.error),
            "saved whole": _names(made.saved),
            "dropped": _names(made.dropped),
            "base's own": _names(made.left_out),
            "unchanged": plural(made.unchanged, "tensor"),
        }
    )
    truncation.print_worst(made.modules)


def _names(names: Sequence[str]) -> list[str]:
    """Many that differ in numbers of layers only are one, with `*`."""
    from adapterhub.registry.inspection import starred

    return list(names) if len(names) <= _MANY else list(starred(names))


COMMANDS = (resize, extract)
