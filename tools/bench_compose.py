"""How fast adapters are made of checkpoints, in how much memory, and how near the exact SVD.

    python tools/bench_compose.py [sum] [elements] [extract] [--billions 1.7] [--rank 16]
                                  [--cores N] [--json FILE]

sum: two adapters of rank 32 over a model of 7 B (32 layers × 7 projections), from their files
alone, on two cores; and the same of one layer, beside PEFT's `svd`.

elements: what methods on elements need beside the dense deltas of one module.

extract: builds a random Llama in bf16 and two that were "fine-tuned" from it, whose deltas have a
decaying spectrum (σ ~ 1/k) and a flat one, both beside the noise of rounding to bf16; runs
`adapterhub extract` on each in a process of its own; and compares the residual of some modules with
that of the exact SVD, in fp64. The digests of the checkpoints are computed in that time too.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
from compose_parts import bench_elements, bench_sum
from measured import Measured, run
from random_llama import Llama, llama_of, write_base
from rich.console import Console
from rich.table import Table

from adapterhub.base import Base, open_base
from adapterhub.composing.blas import one_thread
from adapterhub.tensorfile import ArrayTensor, read_header, usable_cores, write_file

SPECTRA: dict[str, Callable[[int], Any]] = {
    "decaying": lambda rank: 1.0 / np.arange(1, rank + 1),
    "flat": lambda rank: np.full(rank, 0.2),
}
TARGET_SECONDS, TARGET_BYTES, TARGET_RATIO = 60.0, 2e9, 1.02
DELTA_RANK = 256  # of the deltas of the fine-tuned checkpoints
SIZE = 0.05  # ‖delta‖ / ‖weight‖
Array = np.ndarray[Any, np.dtype[Any]]


# --- checkpoints ------------------------------------------------------------------------------


def write_tuned(base: Path, out: Path, spectrum: str) -> None:
    """The base's files, with a delta of this spectrum on each matrix of a layer."""
    out.mkdir()
    for path in sorted(base.iterdir()):
        if path.suffix != ".safetensors":
            (out / path.name).write_bytes(path.read_bytes())
            continue
        tensors = dict(read_header(path).tensors)
        changed = {
            name: _Changed(tensor, spectrum, number)
            for number, (name, tensor) in enumerate(tensors.items())
            if "_proj." in name
        }
        write_file(out / path.name, {**tensors, **changed})


class _Changed:
    """A bf16 weight plus a delta, computed as it is written."""

    def __init__(self, tensor: Any, spectrum: str, seed: int) -> None:
        self.tensor, self.spectrum, self.seed = tensor, spectrum, seed
        self.dtype, self.shape, self.nbytes = tensor.dtype, tensor.shape, tensor.nbytes

    def read(self) -> Array:
        weight = self.tensor.read().astype(np.float32)
        delta = random_delta(weight.shape, self.spectrum, self.seed)
        delta *= SIZE * np.linalg.norm(weight) / np.linalg.norm(delta)
        weight += delta
        found: Array = weight.astype(ml_dtypes.bfloat16)
        return found

    def pieces(self, size: int = 1 << 20) -> Iterator[memoryview]:
        return ArrayTensor(self.read()).pieces(size)


def random_delta(shape: tuple[int, int], spectrum: str, seed: int) -> Array:
    """Random directions with these singular values, nearly: columns are not made orthogonal."""
    dice = np.random.Generator(np.random.SFC64(seed))
    rank = min(DELTA_RANK, *shape)
    b = dice.standard_normal((shape[0], rank), np.float32) / np.float32(np.sqrt(shape[0]))
    a = dice.standard_normal((rank, shape[1]), np.float32) / np.float32(np.sqrt(shape[1]))
    found: Array = (b * SPECTRA[spectrum](rank).astype(np.float32)) @ a
    return found


# --- extract ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Extracted:
    """`ratios`: module → its residual by that of the exact SVD."""

    cost: Measured
    lost: float
    ratios: dict[str, float]

    def record(self) -> dict[str, Any]:
        return {**self.cost.record(), "lost": self.lost, "residual_ratios": self.ratios}


def extract(place: Path, spectrum: str, options: argparse.Namespace) -> Extracted:
    base, tuned, out = place / "base", place / spectrum, place / f"lora-{spectrum}"
    command = [sys.executable, "-m", "adapterhub", "extract", str(base), str(tuned)]
    command += ["--rank", str(options.rank), "--out", str(out), "--json"]
    if options.cores:
        command = ["taskset", "-c", f"0-{options.cores - 1}", *command]
    environment = {**os.environ, "ADAPTERHUB_HOME": str(place / f"home-{spectrum}")}
    cost = run([command], environment)
    if cost.status:
        raise SystemExit(cost.err)
    report = json.loads(cost.out)["result"]
    modules = [one["module"] for one in report["modules"]]
    middle = len(modules) // 14 * 7
    sample = modules[middle : middle + 7][: options.samples]
    pair = open_base(base), open_base(tuned)
    return Extracted(
        cost, report["error"], {name: ratio(*pair, out, name, options.rank) for name in sample}
    )


def ratio(base: Base, tuned: Base, out: Path, module: str, rank: int) -> float:
    """‖Δ − B·A‖ / √Σ of the singular values beyond the rank, squared."""
    name = f"{module}.weight"
    delta = tuned.tensors[name].read().astype(np.float64) - base.tensors[name].read()
    lora = read_header(out / "adapter_model.safetensors").tensors
    b, a = (lora[f"base_model.model.{module}.lora_{x}.weight"].read() for x in "BA")
    with one_thread():
        squares = np.linalg.eigvalsh(
            delta @ delta.T if len(delta) < len(delta.T) else delta.T @ delta
        )
    best = np.sqrt(np.sum(np.sort(squares)[:-rank]))
    return float(np.linalg.norm(delta - b.astype(np.float64) @ a) / best)


def show_extract(console: Console, llama: Llama, found: dict[str, Extracted], rank: int) -> None:
    title = f"extract: rank {rank} from a pair of {llama.parameters / 1e9:.2f} B, bf16"
    table = Table(title=title)
    for column in ("spectrum", "seconds", "CPU s", "peak GB", "lost", "residual / exact SVD's"):
        table.add_column(column, justify="left" if column == "spectrum" else "right")
    for spectrum, one in found.items():
        memory = one.cost.memory.anonymous + one.cost.memory.shared
        ratios = one.ratios.values()
        cells = (f"{one.cost.wall:.1f}", f"{one.cost.cpu:.1f}", f"{memory / 1e9:.2f}")
        worst = f"{max(ratios):.4f} at worst of {len(ratios)}" if ratios else "–"
        table.add_row(spectrum, *cells, f"{one.lost:.2%}", worst)
    console.print(table)
    for what, reached in targets(found).items():
        console.print(f"target {what}: {'reached' if reached else 'missed'}")
    console.print(f"{usable_cores()} cores; the memory is that which is not a file's")


def targets(found: dict[str, Extracted]) -> dict[str, bool]:
    memories = [one.cost.memory for one in found.values()]
    ratios = [ratio for one in found.values() for ratio in one.ratios.values()]
    return {
        f"{TARGET_SECONDS:g} s": all(one.cost.wall <= TARGET_SECONDS for one in found.values()),
        f"{TARGET_BYTES / 1e9:g} GB": all(m.anonymous + m.shared < TARGET_BYTES for m in memories),
        f"residual × {TARGET_RATIO:g}": all(ratio <= TARGET_RATIO for ratio in ratios),
    }


def bench_extract(options: argparse.Namespace, console: Console, place: Path) -> dict[str, Any]:
    llama = llama_of(options.billions * 1e9)
    found: dict[str, Extracted] = {}
    print(f"{llama.parameters / 1e9:.2f} B parameters in {place}", file=sys.stderr)
    write_base(place / "base", llama)
    for spectrum in SPECTRA:
        write_tuned(place / "base", place / spectrum, spectrum)
        found[spectrum] = extract(place, spectrum, options)
        for path in (place / spectrum).iterdir():
            path.unlink()
    show_extract(console, llama, found, options.rank)
    return {spectrum: one.record() for spectrum, one in found.items()}


# --- the command ------------------------------------------------------------------------------

Part = Callable[[argparse.Namespace, Console, Path], dict[str, Any]]
PARTS: dict[str, Part] = {"sum": bench_sum, "elements": bench_elements, "extract": bench_extract}


@contextmanager
def workplace(parent: Path | None) -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="bench-compose-", dir=parent) as name:
        yield Path(name)


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("parts", nargs="*", default=list(PARTS), help=f"{', '.join(PARTS)} (all)")
    parser.add_argument("--billions", type=float, default=1.7, help="parameters (1.7)")
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--cores", type=int, default=0, help="run on so many (all)")
    parser.add_argument("--samples", type=int, default=7, help="modules compared exactly (7)")
    parser.add_argument("--rounds", type=int, default=3, help="of the whole sum (3)")
    parser.add_argument("--layers", type=int, default=32, help="of the model that is summed (32)")
    parser.add_argument("--side", type=int, default=2048, help="of the layer that PEFT sums (2048)")
    parser.add_argument("--dir", type=Path, help="where the work directory is made")
    parser.add_argument("--json", type=Path, help="a file for all raw figures")
    options = parser.parse_args(arguments)
    if unknown := sorted({*options.parts} - PARTS.keys()):
        parser.error(f"there is no part {unknown[0]!r}: {', '.join(PARTS)}")
    if options.rank < 1 or options.samples < 0:
        parser.error("--rank must be at least 1, --samples at least 0")
    return options


def main(arguments: Sequence[str] | None = None) -> None:
    options = parse(arguments)
    os.environ["HF_HUB_OFFLINE"] = "1"
    console = Console(width=100, highlight=False)
    figures = {}
    for part in options.parts:
        with workplace(options.dir) as place:
            figures[part] = PARTS[part](options, console, place)
    if options.json:
        options.json.write_text(json.dumps(figures, indent=1) + "\n")


if __name__ == "__main__":
    main()
