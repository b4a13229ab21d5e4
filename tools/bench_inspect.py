"""How long `inspect` takes for a directory of many adapters.

    python tools/bench_inspect.py [--n 200] [--layers 32] [--hidden 4096] [--rank 8]

Writes N LoRA adapters (q and v of every layer, fp16) into a temporary directory, each with values
of its own, then inspects them all in one command, twice; the first run is not counted. Prints
seconds, beside those of reading the same bytes.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from adapterhub.tensorfile import ArrayTensor, usable_cores, write_file


def write_adapter(place: Path, seed: int, layers: int, hidden: int, rank: int) -> int:
    """One adapter; its size in bytes."""
    place.mkdir(parents=True)
    random = np.random.default_rng(seed)
    values = random.standard_normal(4 * layers * hidden * rank, np.float32).astype(np.float16)
    parts = iter(np.split(values, 4 * layers))
    tensors = {}
    for layer in range(layers):
        for name in ("q_proj", "v_proj"):
            key = f"base_model.model.model.layers.{layer}.self_attn.{name}"
            tensors[f"{key}.lora_A.weight"] = ArrayTensor(next(parts).reshape(rank, hidden))
            tensors[f"{key}.lora_B.weight"] = ArrayTensor(next(parts).reshape(hidden, rank))
    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": "owner/base",
        "r": rank,
        "lora_alpha": 2 * rank,
        "target_modules": ["q_proj", "v_proj"],
    }
    write_file(place / "adapter_model.safetensors", tensors)
    (place / "adapter_config.json").write_text(json.dumps(config))
    return values.nbytes


def inspect(root: Path, home: Path) -> tuple[float, int]:
    """Seconds, and how many adapters were seen."""
    command = [sys.executable, "-m", "adapterhub", "inspect", str(root), "--json"]
    environment = os.environ | {"ADAPTERHUB_HOME": str(home)}
    started = time.perf_counter()
    done = subprocess.run(command, env=environment, capture_output=True, check=True)
    return time.perf_counter() - started, len(json.loads(done.stdout)["result"])


def read_all(root: Path) -> float:
    started = time.perf_counter()
    for path in root.rglob("*.safetensors"):
        path.read_bytes()
    return time.perf_counter() - started


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--n", type=int, default=200, help="how many adapters")
    parser.add_argument("--layers", type=int, default=32)
    parser.add_argument("--hidden", type=int, default=4096)
    parser.add_argument("--rank", type=int, default=8)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory:
        root, home = Path(directory) / "runs", Path(directory) / "home"
        shape = (options.layers, options.hidden, options.rank)
        size = sum(write_adapter(root / f"run-{i:03}", i, *shape) for i in range(options.n))
        inspect(root, home)
        seconds, count = inspect(root, home)
        print(f"{usable_cores()} cores, load {os.getloadavg()[0]:.1f}, page cache warm")
        print(f"{count} adapters of {size / options.n / 1e6:.1f} MB inspected in {seconds:.2f} s")
        print(f"reading the same bytes in one thread: {read_all(root):.2f} s")


if __name__ == "__main__":
    main()
