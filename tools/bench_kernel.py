"""How fast the merge kernel is, against copying memory and against a library's matrix product.

    python tools/bench_kernel.py [--rounds N] [--shape OUT IN]

In one run, interleaved and repeated, so that a change in the machine's speed meets all alike, and
on all cores: `numpy.copyto` of the weight's bytes; each path of the kernel on the bf16 weight at
ranks 16 and 64, in chunks of 4 MiB; `torch.mm` of two large square fp32 matrices. Printed are
medians for each path that this machine has, the ratios of paired rounds, and the load that others
put on the machine.
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from adapterhub import kernels
from adapterhub.errors import NotSupported
from adapterhub.kernels import library
from adapterhub.tensorfile import usable_cores

BF16 = np.dtype(ml_dtypes.bfloat16)
CHUNK = 2 * 1024 * 1024  # elements of bf16 in 4 MiB
RANKS = (16, 64)
SQUARE = 3072


class Bench:
    """The weight as bits, its target, and a pool that works on both in chunks."""

    def __init__(self, shape: tuple[int, int], threads: int) -> None:
        self.rng = np.random.default_rng(0)
        self.shape = shape
        # Both signs, magnitudes from 0.008 to 0.5.
        bits = self.rng.integers(0x3C00, 0x3F00, shape[0] * shape[1], np.uint16)
        self.source: NDArray[Any] = bits | (self.rng.integers(0, 2, bits.size, np.uint16) << 15)
        self.target: NDArray[Any] = np.ones_like(self.source)
        self.pool = ThreadPoolExecutor(threads)

    def copy(self) -> None:
        self.over_chunks(lambda part, first: np.copyto(self.target[part], self.source[part]))

    def merging(self, rank: int) -> Callable[[], None]:
        """By the path that the environment forces now."""
        out, columns = self.shape
        a = self.rng.standard_normal((rank, columns)).astype(np.float32)
        b = self.rng.standard_normal((out, rank)).astype(np.float32)
        factor = kernels.Factor(a, b, np.float32(0.01))
        prepared = kernels.prepare(self.shape, [factor], BF16)
        return lambda: self.over_chunks(
            lambda part, first: prepared.run(self.source[part], self.target[part], first)
        )

    def over_chunks(self, work: Callable[[slice, int], None]) -> None:
        starts = range(0, self.source.size, CHUNK)
        list(self.pool.map(lambda first: work(slice(first, first + CHUNK), first), starts))


def product(threads: int) -> Callable[[], None]:
    import torch

    torch.set_num_threads(threads)
    generator = torch.Generator().manual_seed(0)
    a, b = (torch.randn(SQUARE, SQUARE, generator=generator) for _ in range(2))
    out = torch.empty(SQUARE, SQUARE)

    def multiply() -> None:
        torch.mm(a, b, out=out)

    return multiply


def compiled_paths() -> list[str]:
    """Fastest first."""
    found = []
    for name in reversed(library.PATHS):
        os.environ[library.SWITCH] = name
        try:
            library.choose()
        except NotSupported:
            continue
        found.append(name)
    return found


def seconds(call: Callable[[], None]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def measure(calls: dict[str, Callable[[], None]], rounds: int) -> dict[str, list[float]]:
    for call in calls.values():
        call()
    times: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(rounds):
        for name, call in calls.items():
            times[name].append(seconds(call))
    return times


def ratio(slow: Sequence[float], fast: Sequence[float], scale: float = 1) -> float:
    """Median over the rounds of scale · slow / fast."""
    return statistics.median(scale * x / y for x, y in zip(slow, fast, strict=True))


def report(times: dict[str, list[float]], shape: tuple[int, int], paths: Sequence[str]) -> None:
    size = shape[0] * shape[1]
    for name, taken in times.items():
        middle, line = statistics.median(taken), ""
        if name != "torch.mm":
            line = f"{4 * size / middle / 1e9:7.1f} GB/s read + written"
        work = 2 * SQUARE**3 if name == "torch.mm" else 2 * size * int(name.split()[-1] or 0)
        line += f"{work / middle / 1e9:8.0f} GFLOP/s" if work else ""
        print(f"{name:14} {middle * 1e3:8.1f} ms {line}")
    print()
    flops = 2 * size * 64 / (2 * SQUARE**3)
    for path in paths:
        print(f"{path}: r=16 at {ratio(times['copy 0'], times[f'{path} 16']):.2f} × copy", end=", ")
        print(f"r=64 at {ratio(times['torch.mm'], times[f'{path} 64'], flops):.2f} × torch.mm")
    if {"avx2", "avx512"} <= set(paths):
        for rank in RANKS:
            share = ratio(times[f"avx512 {rank}"], times[f"avx2 {rank}"])
            print(f"avx2 at {share:.2f} × avx512 at r={rank}")
    print("targets: avx512 r=16 ≥ 0.5 × copy, r=64 ≥ 2 × torch.mm; avx2 ≥ 0.4 × avx512")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--shape", type=int, nargs=2, default=(4096, 14336), metavar=("OUT", "IN"))
    options = parser.parse_args()
    threads, load = usable_cores(), os.getloadavg()[0]
    shape = (options.shape[0], options.shape[1])
    bench, paths = Bench(shape, threads), compiled_paths()
    calls: dict[str, Callable[[], None]] = {"copy 0": bench.copy, "torch.mm": product(threads)}
    # libm's fma, where the portable path has no other, would take most of the time of a round.
    shown = [path for path in paths if path != "portable"] or paths
    for path in shown:
        os.environ[library.SWITCH] = path
        calls.update({f"{path} {rank}": bench.merging(rank) for rank in RANKS})
    times = measure(calls, options.rounds)
    print(f"{shape[0]} × {shape[1]} bf16, {threads} threads, load {load:.1f} before this run\n")
    report(times, shape, shown)


if __name__ == "__main__":
    main()
