"""resize, extract."""

from __future__ import annotations

from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

import click

from adapterhub.cli import made, output, truncation
from adapterhub.cli.opening import adapter_argument, open_registry, short_ref
from adapterhub.cli.output import json_option, plural, progress, quiet_option, short, size

if TYPE_CHECKING:
    from adapterhub.composing import Extracted


@click.command()
@adapter_argument("adapter", metavar="ADAPTER")
@click.option("--rank", type=int, help="Of each module at most; a lower one of its own stays.")
@click.option("--energy", type=float, help="The smallest rank that keeps this share: 0.99.")
@click.option("--uniform", is_flag=True, help="One rank for all modules, by the energy of all.")
@made.target_options
@click.option("--base", metavar="BASE", help="For methods that hang on the shapes of the weights.")
@click.option("--allow-pickle", is_flag=True, help="Read an adapter's .bin file.")
@json_option
@quiet_option
def resize(adapter: str, as_json: bool, quiet: bool, **options: Any) -> None:
    """Make a LoRA of another rank; LoHa, VeRA and others become one."""
    from adapterhub import api

    with open_registry() as registry, ExitStack() as bars:
        on_plan = made.counting(bars, "resizing")
        found = api.resize(adapter, registry=registry, on_plan=on_plan, **options)
    facts = {
        "of": f"{short_ref(found.input)}, {found.method}",
        "modules": len(found.modules),
        "rank": truncation.ranks(found.modules),
        "truncation": truncation.said(found.error),
        "same bits": made.same_bits(found.reproducible),
        "notes": "; ".join(map(output.for_people, found.notes)),
    }
    made.tell(found, "resized", facts, found.modules, as_json=as_json, quiet=quiet)


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
    help="Only these modules get factors: ends of paths, or patterns with *; q_proj,v_proj.",
)
@click.option(
    "--rest",
    type=click.Choice(["save", "refuse", "drop"]),
    default="save",
    show_default=True,
    help="What becomes of embeddings, norms, heads, biases that changed.",
)
@made.target_options
@json_option
@quiet_option
def extract(
    base: str,
    finetuned: str,
    targets: tuple[str, ...],
    as_json: bool,
    quiet: bool,
    **options: Any,
) -> None:
    """Make an adapter of what a fine-tuning did to its BASE."""
    from adapterhub import api

    with open_registry() as registry, ExitStack() as bars:

        def on_plan(nbytes: int) -> tuple[output.Progress, output.Progress]:
            hashing = bars.enter_context(progress("hashing both", nbytes))
            return hashing, bars.enter_context(progress("extracting", nbytes))

        found = api.extract(
            base,
            finetuned,
            targets=[name.strip() for text in targets for name in text.split(",")],
            registry=registry,
            on_plan=on_plan,
            **options,
        )
    made.tell(found, "extracted", _facts(found), found.modules, as_json=as_json, quiet=quiet)


def _facts(found: Extracted) -> dict[str, Any]:
    kept = truncation.said(found.error)
    return {
        "method": found.method,
        "base": short(found.base_root),
        "fine-tuned": short(found.tuned_root),
        "modules": len(found.modules) or None,
        "rank": truncation.ranks(found.modules),
        "elements": f"{found.elements:,}: {kept}" if found.elements else None,
        "truncation": None if found.elements else kept,
        "saved whole": _saved(found),
        "dropped": made.names(found.dropped),
        "base's own": made.names(found.left_out),
        "unchanged": plural(found.unchanged, "tensor"),
    }


def _saved(found: Extracted) -> str | None:
    """With their size, beside which that of factors is small."""
    if not found.saved:
        return None
    return f"{size(found.saved_bytes)}: {', '.join(made.names(found.saved))}"


COMMANDS = (resize, extract)
