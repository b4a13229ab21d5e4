"""How long commands take to start: whole processes, medians of several runs.

    python tools/bench_start.py [--runs 9]

Targets: `adapterhub --help` under 0.2 s; add, list and inspect start without torch. Beside each
command stands what an empty Python process takes in the same run.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import click
import numpy as np

from adapterhub.adapter import Adapter, BaseClaim
from adapterhub.formats import peft
from adapterhub.tensorfile import ArrayTensor

HEAVY = ("torch", "transformers", "bitsandbytes")


def make_adapter(directory: Path) -> None:
    """A rank-8 LoRA of two modules, random values."""
    rng = np.random.default_rng(0)

    def tensor(*shape: int) -> ArrayTensor:
        return ArrayTensor(rng.standard_normal(shape, dtype=np.float32))

    modules = {
        f"encoder.layer.{i}.attention.self.query": {
            "lora_A": tensor(8, 384),
            "lora_B": tensor(384, 8),
        }
        for i in range(2)
    }
    config = {"r": 8, "lora_alpha": 16, "target_modules": ["query"]}
    directory.mkdir()
    peft.write(Adapter("lora", "peft", config, modules, BaseClaim("owner/base")), directory)


def run(*arguments: str) -> float:
    started = time.perf_counter()
    subprocess.run([sys.executable, *arguments], check=True, capture_output=True)
    return time.perf_counter() - started


def heavy_imports(*arguments: str) -> list[str]:
    """Which of HEAVY a command imports."""
    command = [sys.executable, "-X", "importtime", *arguments]
    log = subprocess.run(command, check=True, capture_output=True, text=True).stderr
    imported = {line.rpartition("|")[2].strip() for line in log.splitlines()}
    return [name for name in HEAVY if name in imported]


@click.command(help=__doc__)
@click.option("--runs", default=9, show_default=True)
def main(runs: int) -> None:
    with tempfile.TemporaryDirectory() as place:
        adapter = Path(place) / "adapter"
        make_adapter(adapter)
        os.environ["ADAPTERHUB_HOME"] = str(Path(place) / "home")
        commands: dict[str, tuple[str, ...]] = {
            "an empty process": ("-c", ""),
            "adapterhub --help": ("-m", "adapterhub", "--help"),
            "adapterhub add": ("-m", "adapterhub", "add", str(adapter), "--name", "bench"),
            "adapterhub list": ("-m", "adapterhub", "list"),
            "adapterhub inspect": ("-m", "adapterhub", "inspect", str(adapter)),
            "adapterhub show": ("-m", "adapterhub", "show", "bench"),
        }
        times: dict[str, list[float]] = {name: [] for name in commands}
        for _ in range(runs):  # interleaved, so that all see the same noise
            for name, arguments in commands.items():
                times[name].append(run(*arguments))
        for name, arguments in commands.items():
            heavy = ", ".join(heavy_imports(*arguments)) or "none"
            low, middle = min(times[name]), statistics.median(times[name])
            print(f"{name:<20} median {middle:.3f} s  min {low:.3f} s  heavy imports: {heavy}")


if __name__ == "__main__":
    main()
