"""How fast a model in memory changes from one adapter to another, against PEFT, and what it costs.

    python tools/bench_attach.py [--billions 1.7] [--rank 16] [--rounds 5] [--json FILE]

Builds a random Llama in bf16 with two LoRA adapters on all its linear layers, loads it twice, and
in one process, by turns, changes each model from one adapter to the other:

    switch       attached.switch(…), which reads the adapter's file; the original bits are in memory
    switch/base  the same where the original bits are read from the base's files (after the rounds)
    PEFT         unmerge_adapter(), set_adapter(…), merge_adapter(); both adapters are in memory

At the end both are taken off, and the weights compared with the base's bits. One change of each
does not count. The memory for the restore is what `Attached.memory` says, beside the model's own.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from random_llama import Llama, llama_of, write_adapter, write_base
from rich.console import Console
from rich.table import Table

import adapterhub as ah
from adapterhub import kernels
from adapterhub.tensorfile import usable_cores

TARGET = 5.0
NAMES = ("one", "other")


def load(place: Path) -> Any:
    import torch
    import transformers

    return transformers.AutoModelForCausalLM.from_pretrained(place / "base", dtype=torch.bfloat16)


def with_peft(model: Any, place: Path) -> Any:
    import peft

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        wrapped = peft.PeftModel.from_pretrained(model, place / NAMES[0], adapter_name=NAMES[0])
        wrapped.load_adapter(place / NAMES[1], adapter_name=NAMES[1])
    wrapped.merge_adapter()
    return wrapped


class Time(NamedTuple):
    """Seconds; `cpu` of all threads, which other processes on the machine hardly change."""

    wall: float
    cpu: float


def timed(action: Callable[[], object]) -> Time:
    start, used = time.perf_counter(), time.process_time()
    action()
    return Time(time.perf_counter() - start, time.process_time() - used)


def median(times: Sequence[Time]) -> Time:
    return Time(*(statistics.median(column) for column in zip(*times, strict=True)))


def change_peft(wrapped: Any, name: str) -> None:
    wrapped.unmerge_adapter()
    wrapped.set_adapter(name)
    wrapped.merge_adapter()


def rounds(ours: Any, wrapped: Any, place: Path, count: int) -> tuple[list[Time], list[Time]]:
    """Seconds of each change; who comes first takes turns."""
    mine: list[Time] = []
    theirs: list[Time] = []
    for number in range(count + 1):
        name = NAMES[(number + 1) % 2]
        steps = [
            (mine, partial(ours.switch, place / name)),
            (theirs, partial(change_peft, wrapped, name)),
        ]
        for seconds, step in steps if number % 2 else steps[::-1]:
            seconds.append(timed(step))
    return mine[1:], theirs[1:]


def differing(model: Any, reference: Any) -> float:
    """The share of the parameters whose bits are not those of the reference."""
    import torch

    plain = {name.replace("base_layer.", ""): p for name, p in model.named_parameters()}
    other = total = 0
    for name, parameter in reference.named_parameters():
        bits = (t.detach().view(torch.int16) for t in (parameter, plain[name]))
        other += int((next(bits) != next(bits)).sum())
        total += parameter.numel()
    return other / total


def measure(place: Path, options: argparse.Namespace) -> dict[str, Any]:
    import torch

    model, theirs = load(place), load(place)
    handles: list[Any] = []
    first = timed(lambda: handles.append(ah.attach(model, place / NAMES[0])))
    attached = handles[0]
    wrapped = with_peft(theirs, place)
    mine, peft = rounds(attached, wrapped, place, options.rounds)
    memory = attached.memory
    detach = timed(attached.detach)
    wrapped.unmerge_adapter()
    lost = differing(wrapped.base_model.model, model)
    from_files = switch_from_files(model, place, options.rounds)
    back = differing(model, load(place))
    return {
        "torch_threads": torch.get_num_threads(),
        "attach": first,
        "switch": mine,
        "switch/base": from_files,
        "peft": peft,
        "detach": detach,
        "restore_bytes": memory,
        "parameters_lost": {"adapterhub": back, "peft": lost},
    }


def switch_from_files(model: Any, place: Path, count: int) -> list[Time]:
    attached = ah.attach(model, place / NAMES[0], restore="base", base=place / "base")
    found = []
    for number in range(1, count + 2):
        found.append(timed(partial(attached.switch, place / NAMES[number % 2])))
    attached.detach()
    return found[1:]


def show(console: Console, llama: Llama, figures: dict[str, Any], rank: int) -> None:
    table = Table(title=f"changing adapters of rank {rank} on {llama.parameters / 1e9:.2f} B, bf16")
    columns = ("", "median s", "best s", "worst s", "CPU s", "times PEFT", "times its CPU")
    for column in columns:
        table.add_column(column, justify="right" if column else "left")
    peft = median(figures["peft"])
    for label in ("switch", "switch/base", "peft"):
        middle, walls = median(figures[label]), [time.wall for time in figures[label]]
        cells = (middle.wall, min(walls), max(walls), middle.cpu)
        ratios = (peft.wall / middle.wall, peft.cpu / middle.cpu)
        table.add_row(label, *(f"{c:.2f}" for c in cells), *(f"{r:.1f}" for r in ratios))
    console.print(table)
    lost, kept = figures["parameters_lost"], figures["restore_bytes"]
    console.print(
        f"first attach {figures['attach'].wall:.2f} s, detach {figures['detach'].wall:.2f} s; for "
        f"the restore {kept / 1e9:.2f} GB in memory ({kept / llama.nbytes:.0%} of the model), or 0 "
        f"with restore='base'"
    )
    console.print(
        f"parameters that do not have the base's bits at the end: adapterhub "
        f"{lost['adapterhub']:.2%}, PEFT {lost['peft']:.2%}"
    )
    threads = figures["torch_threads"]
    console.print(f"kernel {kernels.name}, {usable_cores()} cores; torch with {threads} threads")
    times = peft.wall / median(figures["switch"]).wall
    console.print(
        f"target {TARGET:g}x: {'reached' if times >= TARGET else 'missed'} ({times:.1f}x)"
    )


def refuse_small(nbytes: int) -> None:
    """Two models, the original bits of one, and two adapters have to be in memory."""
    pages = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    meminfo = Path("/proc/meminfo")
    if meminfo.exists():
        lines = dict(line.split(":") for line in meminfo.read_text().splitlines())
        pages = int(lines["MemAvailable"].split()[0]) * 1024
    needed = nbytes * 7 // 2
    if pages < needed:
        raise SystemExit(
            f"{pages / 1e9:.1f} GB of memory are available, {needed / 1e9:.1f} GB are needed; "
            "give fewer --billions"
        )


@contextmanager
def workplace(parent: Path | None, llama: Llama, rank: int) -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="bench-attach-", dir=parent) as name:
        place = Path(name)
        write_base(place / "base", llama)
        for seed, adapter in enumerate(NAMES):
            write_adapter(place / adapter, llama, rank, seed=seed)
        os.environ["ADAPTERHUB_HOME"] = str(place / "home")
        yield place


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--billions", type=float, default=1.7, help="parameters (1.7)")
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--dir", type=Path, help="where the work directory is made")
    parser.add_argument("--json", type=Path, help="a file for all raw figures")
    options = parser.parse_args(arguments)
    if options.rounds < 1 or options.rank < 1:
        parser.error("--rounds and --rank must be at least 1")
    return options


def main(arguments: Sequence[str] | None = None) -> None:
    options = parse(arguments)
    os.environ["HF_HUB_OFFLINE"] = "1"
    llama = llama_of(options.billions * 1e9)
    refuse_small(llama.nbytes)
    with workplace(options.dir, llama, options.rank) as place:
        print(f"{llama.parameters / 1e9:.2f} B parameters in {place}", file=sys.stderr)
        figures = measure(place, options)
    show(Console(width=100, highlight=False), llama, figures, options.rank)
    if options.json:
        options.json.write_text(json.dumps(figures, indent=1) + "\n")


if __name__ == "__main__":
    main()
