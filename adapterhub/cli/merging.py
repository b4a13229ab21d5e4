"""merge."""

from __future__ import annotations

import os
import re
from collections import Counter
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from adapterhub.cli import output
from adapterhub.cli.opening import adapter_argument, open_registry, short_ref
from adapterhub.cli.output import json_option, progress, quiet_option, size

if TYPE_CHECKING:
    from adapterhub.merging import MergePlan, MergeReport, Source

_WEIGHT = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?", re.ASCII)


@click.command()
@click.argument("base", metavar="BASE")
@adapter_argument("adapters", metavar="ADAPTER[=WEIGHT]...", nargs=-1, required=True)
@click.option("--out", type=click.Path(path_type=Path), help="A new directory for the result.")
@click.option("--dtype", type=click.Choice(["float32", "float16", "bfloat16"]))
@click.option("--max-shard-size", help="5GB, 512MiB …; by default the base's own files.")
@click.option("--force-base", is_flag=True, help="Merge even if another base was recorded.")
@click.option(
    "--base-is-initialised",
    is_flag=True,
    help="The base is the one that PiSSA, OLoRA, CorDA, LoRA-GA or LoftQ has changed.",
)
@click.option(
    "--part",
    type=click.Choice(["lora"]),
    help="Of a union of methods (UniPELT) merge the LoRA only, and leave out the rest.",
)
@click.option("--allow-pickle", is_flag=True, help="Read an adapter's .bin file.")
@click.option("--resume", is_flag=True, help="Go on with an interrupted merge to the same --out.")
@click.option("--dry-run", is_flag=True, help="Print the plan and write nothing.")
@json_option
@quiet_option
def merge(
    base: str,
    adapters: tuple[str, ...],
    out: Path | None,
    dry_run: bool,
    resume: bool,
    as_json: bool,
    quiet: bool,
    **options: Any,
) -> None:
    """Fold adapters into the weights of a BASE and write a checkpoint."""
    from adapterhub import api

    specs = [split_weight(text) for text in adapters]
    with open_registry() as registry, ExitStack() as bars:
        if dry_run:
            _print_plan(api.plan_merge(base, specs, registry=registry, **options), as_json)
            return
        if out is None:
            raise click.UsageError("Missing option '--out' (or '--dry-run', to see the plan).")

        def on_plan(plan: MergePlan) -> tuple[output.Progress, output.Progress]:
            total = sum(tensor.nbytes for tensor in plan.base.tensors.values())
            hashing = bars.enter_context(progress("hashing the base", total))
            return hashing, bars.enter_context(progress("merging", plan.write_bytes))

        try:
            report = api.merge(
                base, specs, out=out, resume=resume, registry=registry, on_plan=on_plan, **options
            )
        except KeyboardInterrupt:
            _say_how_to_go_on(out)
            raise
    if as_json:
        output.print_json(report.to_dict())
    elif quiet:
        click.echo(report.weights_root)
    else:
        _print_report(report)


def _say_how_to_go_on(out: Path) -> None:
    if (partial := out.absolute().with_name(f"{out.absolute().name}.partial")).is_dir():
        click.echo(f"\n{partial} keeps the files that are whole; --resume goes on there", err=True)


def split_weight(text: str) -> tuple[str, float]:
    """`a=0.7` → ("a", 0.7): at the last `=`, if a number follows.

    Raises UsageError for other words there, unless `text` is a path as it stands, or looks like one
    and what is before the `=` is none; and for numbers that are so small that they would be 0.
    """
    name, equals, weight = text.rpartition("=")
    if not equals or not name:
        return text, 1.0
    if _WEIGHT.fullmatch(weight):
        if float(weight) == 0 and re.match("[+-]?[0.]*[1-9]", weight):
            raise click.UsageError(f"the weight of {name} is {weight}: that is too small")
        return name, float(weight)
    is_path = "/" in weight or not os.path.lexists(name)  # ./a=x, where ./a is there, is no path
    if os.path.lexists(text) or (is_path and ("/" in text or "\\" in text)):
        return text, 1.0
    raise click.UsageError(
        f"the weight of {name} is {weight!r}: a number is needed, as in {name}=0.5"
    )


def _print_plan(plan: MergePlan, as_json: bool) -> None:
    from adapterhub.merging.ranges import listing, memory
    from adapterhub.tensorfile import usable_cores

    ranges = listing(plan)
    copied = sum(item["bytes"] for item in ranges if item["do"] == "copy")
    computed = sum(item["bytes"] for item in ranges) - copied
    needed = memory(plan, usable_cores())
    facts = {
        "base": str(plan.base.path),
        "adapters": [_adapter(source) for source in plan.sources],
        "makes a": plan.model_class,
        "tensors": dict(Counter(work.action for work in plan.works.values())),
        "left out": plan.left_out,
        "reads": size(plan.read_bytes),
        "writes": f"{size(plan.write_bytes)}: {size(copied)} copied, {size(computed)} computed",
        "memory": f"about {size(needed)}",
        "files": [*(shard.filename for shard in plan.shards), *plan.companions, "config.json"],
        "notes": plan.notes,
    }
    if as_json:
        fates = [
            {"adapter": plan.sources[f.source].name, "tensor": f.tensor, "fate": f.fate}
            for f in plan.fates
        ]
        sizes = {
            "read_bytes": plan.read_bytes,
            "write_bytes": plan.write_bytes,
            "memory_bytes": needed,
        }
        output.print_json(facts | sizes | {"ranges": ranges, "fates": fates})
        return
    output.print_facts(facts, title="plan (nothing is written)")
    click.echo()
    output.print_table(("adapter", "tensors", "number", "become"), _fates(plan), right=("number",))


def _adapter(source: Source) -> str:
    part = f" ({source.part} only)" if source.part else ""
    return f"{short_ref(source.name)} × {source.weight:g}{part}"


def _fates(plan: MergePlan) -> list[tuple[str, str, int, str]]:
    """Fates of like tensors in one row, with `*` for the numbers of layers."""
    from adapterhub.registry.inspection import starred

    counts: dict[tuple[str, str, str], int] = {}
    for fate in plan.fates:
        name = short_ref(plan.sources[fate.source].name)
        key = (name, starred([fate.tensor])[0], starred([fate.fate])[0])
        counts[key] = counts.get(key, 0) + 1
    return [(name, tensor, n, fate) for (name, tensor, fate), n in counts.items()]


def _print_report(report: MergeReport) -> None:
    rate = report.bytes_written / max(report.seconds, 1e-9)
    click.secho(f"merged into {report.out}", bold=True)
    output.print_facts(
        {
            "makes a": report.model_class,
            "tensors": report.actions,
            "left out": report.left_out,
            "weights root": report.weights_root,
            "base": "verified" if report.verified else "unverified: no weights_root was recorded",
            "kernel": report.kernel,
            "wrote": f"{size(report.bytes_written)} in {report.seconds:.1f} s "
            f"({size(int(rate))}/s)",
            "notes": report.notes,
        }
    )


COMMANDS = (merge,)
