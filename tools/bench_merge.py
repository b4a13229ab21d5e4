"""How fast merging is, against copying the base and against PEFT, and how much memory it takes.

    python tools/bench_merge.py [--parameters 1.67] [--rounds 5] [--peft-rounds 1] [--json FILE]
    python tools/bench_merge.py --grow [0.4 1.7 3.4]

Builds a random Llama in bf16 (4 shards; 1.67e9 parameters are 3.3 GB) with LoRA adapters on all its
linear layers, then times in one run, interleaved, forwards and backwards by turns, each in a fresh
process with Python's start and imports:

    copy         cp -r --reflink=never, then sync -f
    merge        r=16 and r=64; two adapters of r=16 in one pass
                 warm: the digests of the base are cached; cold: they are not
    verify       verify --repeat: the merge once more, compared with what was written
    PEFT         from_pretrained in bf16, merge_and_unload, save_pretrained; it syncs nothing
    sha256       tensor digests of the base on all cores, in this process

Before each, outside of the timed part: the last output is deleted, all is synced, memory that is
free is filled with page cache (see page_cache.py), and the inputs are read once. So nothing is read
from the disk, and nobody pays for the dirty pages of another; copy and merge pay for bringing their
own to the disk. One copy and one merge run before the rounds and do not count.

The second mode merges models of growing size: memory should stay flat, time be linear.
The work directory, up to three and a half times the model, is removed at the end, unless --keep.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import merge_figures as figures
from merge_figures import COPY, LABELS, PEFT, R16
from merge_rounds import Bench
from page_cache import Filler, memory
from random_llama import Llama, llama_of
from rich.console import Console

from adapterhub import kernels
from adapterhub.tensorfile import usable_cores

SIZES = (0.4, 1.7, 3.4)


def compare(
    models: Sequence[Llama],
    options: argparse.Namespace,
    root: Path,
    console: Console,
    filler: Filler | None,
) -> Any:
    """Everything at one size. Returns what --json writes."""
    (model,) = models
    bench = Bench(root, model, {"16": 16, "16-other": 16, "64": 64}, filler)
    shards = bench.build()
    console.print(heading(model, shards, root), soft_wrap=True)
    bench.fill_cache()
    names = [name for name in LABELS if name != PEFT or options.peft_rounds]
    rounds = list(bench.rounds(names, options.rounds, options.peft_rounds))
    found = [*figures.targets(rounds), *figures.same_roots(bench.roots)]
    console.print()
    console.print(figures.cost_table(rounds, model.nbytes, bench.missing))
    console.print(figures.copy_parts(rounds), style="dim")
    for name, reason in bench.missing.items():
        console.print(f"{LABELS[name]}: {reason}", style="dim", soft_wrap=True)
    console.print()
    console.print(figures.target_table(found))
    return bench.record(rounds) | {"targets": [asdict(each) | {"met": each.met} for each in found]}


def grow(
    models: Sequence[Llama],
    options: argparse.Namespace,
    root: Path,
    console: Console,
    filler: Filler | None,
) -> Any:
    """Copy and merge at r=16, one size after the other. Returns what --json writes."""
    records, sizes = [], []
    for number, model in enumerate(models):
        place = root / str(number)
        place.mkdir()
        bench = Bench(place, model, {"16": 16}, filler)
        console.print(heading(model, bench.build(), place), soft_wrap=True)
        bench.fill_cache()
        shutil.rmtree(bench.place.merged)
        rounds = list(bench.rounds((COPY, R16), options.rounds))
        records.append(bench.record(rounds))
        sizes.append(figures.Size(model.parameters, model.nbytes, rounds))
        shutil.rmtree(place)
    console.print()
    console.print(figures.growth_table(sizes))
    for line in figures.growth(sizes):
        console.print(line, soft_wrap=True)
    return records


def heading(model: Llama, shards: int, place: Path) -> str:
    free = memory("MemAvailable")
    cached = "page cache warm"
    if free < 3 * model.nbytes:  # base, output, and what a process may need itself
        cached = "TOO LITTLE MEMORY for a warm page cache, so part of this is the speed of the disk"
    return (
        f"{model.parameters / 1e9:.3g} B parameters, bf16, {model.nbytes / 1e9:.3g} GB in {shards} "
        f"shards on {filesystem(place)}; {cached}\n{usable_cores()} cores, load "
        f"{os.getloadavg()[0]:.1f} before, {free / 1e9:.0f} GB of memory free, "
        f"kernel {kernels.name}"
    )


def filesystem(place: Path) -> str:
    command = ["df", "--output=fstype", str(place)]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()[-1]


@contextmanager
def workplace(parent: Path | None, needed: int, keep: bool) -> Iterator[Path]:
    """A new directory on a disk; by default in that for temporary files, if it shares the disk of
    the current one, else in the current one."""
    if parent is None:
        usual, here = Path(tempfile.gettempdir()), Path.cwd()
        parent = usual if usual.stat().st_dev == here.stat().st_dev else here
    if not parent.is_dir():
        raise SystemExit(f"{parent} is not a directory")
    if filesystem(parent) in ("tmpfs", "ramfs"):
        raise SystemExit(f"{parent} is no disk but memory; name another place with --dir")
    free = shutil.disk_usage(parent).free
    if free < needed:
        raise SystemExit(
            f"{parent} has {free / 1e9:.1f} GB free, {needed / 1e9:.1f} GB are needed; "
            "name another place with --dir, or fewer --parameters"
        )
    root = Path(tempfile.mkdtemp(prefix="bench-merge-", dir=parent)).resolve()
    try:
        yield root
    finally:
        if keep:
            print(f"kept: {root}", file=sys.stderr)
        else:
            shutil.rmtree(root, ignore_errors=True)


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--parameters", type=float, default=1.67, help="in 1e9 (1.67)")
    parser.add_argument("--grow", type=float, nargs="*", metavar="B", help="sizes (0.4 1.7 3.4)")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--peft-rounds", type=int, default=1, help="the first N; 0: none")
    parser.add_argument("--dir", type=Path, help="where the work directory is made")
    parser.add_argument("--no-fill", action="store_true", help="leave free memory as it is")
    parser.add_argument("--keep", action="store_true", help="do not remove the work directory")
    parser.add_argument("--json", type=Path, help="a file for all raw figures")
    options = parser.parse_args(arguments)
    if options.rounds < 1:
        parser.error("--rounds must be at least 1")
    if options.json and not options.json.absolute().parent.is_dir():
        parser.error(f"--json: {options.json.parent} is not a directory")
    return options


def main(arguments: Sequence[str] | None = None) -> None:
    options = parse(arguments)
    growing = options.grow is not None
    sizes = (options.grow or SIZES) if growing else (options.parameters,)
    models = [llama_of(size * 1e9) for size in sizes]
    largest = max(model.nbytes for model in models)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that gigabytes are cleared away
    console = Console(width=132, highlight=False)
    needed = largest * 7 // 2 + (100 << 20)
    with ExitStack() as stack:
        root = stack.enter_context(workplace(options.dir, needed, options.keep))
        filler = None if options.no_fill else stack.enter_context(closing(Filler(root / "empty")))
        mode = grow if growing else compare
        record = mode(models, options, root, console, filler)
    if options.json:
        options.json.write_text(json.dumps(record, indent=1, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main()
