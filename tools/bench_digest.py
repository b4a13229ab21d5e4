"""How fast tensors are digested, against the limit of `hashlib.sha256` on all cores.

    python tools/bench_digest.py [--size BYTES] [--rounds N]

Three measurements in one run, interleaved and repeated, so that a change in the machine's speed
meets all of them alike:

    memory   hashlib.sha256 over buffers in memory, one thread for each core: the limit
    equal    tensor_digests of a file of 64 equal tensors
    half     tensor_digests of a file in which one tensor is half the data

The files are read once before, so that they come from the page cache and not from the disk.
"""

from __future__ import annotations

import argparse
import hashlib
import statistics
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np

from adapterhub.tensorfile import (
    ArrayTensor,
    read_header,
    tensor_digests,
    usable_cores,
    write_file,
)

TENSORS = 64


def write(path: Path, sizes: list[int]) -> None:
    """A file of uint8 tensors with random bytes."""
    block = np.random.default_rng(0).integers(0, 256, max(sizes), np.uint8)
    write_file(path, {f"tensor.{i:03d}": ArrayTensor(block[:n]) for i, n in enumerate(sizes)})


def digest_file(path: Path) -> None:
    tensor_digests(read_header(path).tensors)


def digest_memory(pool: ThreadPoolExecutor, buffers: list[memoryview]) -> None:
    list(pool.map(lambda buffer: hashlib.sha256(buffer).digest(), buffers))


def seconds(call: Callable[[], None]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def measure(size: int, rounds: int, directory: Path) -> dict[str, list[float]]:
    """Seconds of each round."""
    piece = size // TENSORS
    write(directory / "equal.safetensors", [piece] * TENSORS)
    write(directory / "half.safetensors", [size // 2, *[piece] * (TENSORS // 2)])
    cores = usable_cores()
    rng = np.random.default_rng(1)
    buffers = [rng.integers(0, 256, size // cores, np.uint8).data for _ in range(cores)]
    with ThreadPoolExecutor(cores) as pool:
        calls: dict[str, Callable[[], None]] = {
            "memory": partial(digest_memory, pool, buffers),
            "equal": partial(digest_file, directory / "equal.safetensors"),
            "half": partial(digest_file, directory / "half.safetensors"),
        }
        for call in calls.values():
            call()
        times: dict[str, list[float]] = {name: [] for name in calls}
        for _ in range(rounds):
            for name, call in calls.items():
                times[name].append(seconds(call))
    return times


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", type=int, default=1 << 30, help="bytes of tensors (1 GiB)")
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory:
        times = measure(options.size, options.rounds, Path(directory))
    print(f"{options.size / 1e9:.2f} GB, {usable_cores()} cores, {options.rounds} rounds, medians")
    limit = statistics.median(times["memory"])
    for name, values in times.items():
        median = statistics.median(values)
        spread = (max(values) - min(values)) / median
        speed = options.size / 1e9 / median
        print(f"  {name:8s}{speed:7.2f} GB/s  {limit / median:6.1%} of memory  ±{spread / 2:.0%}")


if __name__ == "__main__":
    main()
