"""Parts of bench_compose.py that need adapters only: sums on factors, and methods on elements."""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import time
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from measured import Measured, run
from rich.console import Console
from rich.table import Table

from adapterhub.composing import Options, adapter_of, input_of, plan
from adapterhub.composing import run as run_plan
from adapterhub.registry import Registry
from adapterhub.tensorfile import ArrayTensor, write_file

LAYERS, WIDTH, INNER, RANK = 32, 4096, 11008, 32
LLAMA_7B: Mapping[str, tuple[int, int]] = {
    **{f"self_attn.{name}_proj": (WIDTH, WIDTH) for name in "qkvo"},
    **{f"mlp.{name}_proj": (INNER, WIDTH) for name in ("gate", "up")},
    "mlp.down_proj": (WIDTH, INNER),
}
SPECTRA = ("decaying", "flat")
TARGET_SECONDS, TARGET_RATIO, TARGET_BYTES = 10.0, 100.0, 500_000_000


def write_lora(
    path: Path, shapes: Mapping[str, tuple[int, int]], rank: int, spectrum: str, seed: int
) -> Path:
    """A LoRA of these modules; `decaying`: the k-th column of B is of size 1/k."""
    dice = np.random.Generator(np.random.SFC64(seed))
    sizes = np.ones(rank, np.float32)
    if spectrum == "decaying":
        sizes /= np.arange(1, rank + 1, dtype=np.float32)
    tensors = {}
    for module, (out, into) in shapes.items():
        a = dice.standard_normal((rank, into), np.float32) / np.float32(np.sqrt(into))
        b = dice.standard_normal((out, rank), np.float32) / np.float32(np.sqrt(out)) * sizes
        for name, array in (("A", a), ("B", b)):
            tensors[f"base_model.model.{module}.lora_{name}.weight"] = ArrayTensor(array)
    path.mkdir(parents=True)
    write_file(path / "adapter_model.safetensors", tensors, {"format": "pt"})
    config = {
        "peft_type": "LORA",
        "base_model_name_or_path": "bench/base",
        "r": rank,
        "lora_alpha": rank,
        "target_modules": sorted({module.rpartition(".")[2] for module in shapes}),
    }
    (path / "adapter_config.json").write_text(json.dumps(config))
    return path


def command(place: Path, pair: Sequence[Path], cores: int, *options: str) -> Measured:
    """`adapterhub compose` of a pair, in a process of its own, on the first `cores` cores."""
    words = [sys.executable, "-m", "adapterhub", "compose", f"{pair[0]}=0.7", f"{pair[1]}=0.3"]
    words += [*options, "--out", str(place / f"out-{time.monotonic_ns()}"), "--json"]
    if cores:
        words = ["taskset", "-c", f"0-{cores - 1}", *words]
    cost = run([words], {**os.environ, "ADAPTERHUB_HOME": str(place / "home")})
    if cost.status:
        raise SystemExit(cost.err)
    return cost


# --- sums -------------------------------------------------------------------------------------


def bench_sum(options: argparse.Namespace, console: Console, place: Path) -> dict[str, Any]:
    """Sum and truncation of two adapters over a 7 B model; and of one layer, against PEFT."""
    layers = min(LAYERS, options.layers)
    shapes = {f"model.layers.{n}.{m}": s for n in range(layers) for m, s in LLAMA_7B.items()}
    whole: dict[str, list[Measured]] = {}
    for spectrum in SPECTRA:
        pair = [write_lora(place / f"{spectrum}-{n}", shapes, RANK, spectrum, n) for n in (0, 1)]
        rank = ("--rank", str(RANK))
        rounds = range(options.rounds)
        whole[spectrum] = [command(place, pair, options.cores or 2, *rank) for _ in rounds]
    layer = {spectrum: one_layer(place, spectrum, options) for spectrum in SPECTRA}
    show_sum(console, layers, whole, layer, options.side)
    return {
        "whole": {name: [cost.record() for cost in costs] for name, costs in whole.items()},
        "layer": layer,
    }


def one_layer(place: Path, spectrum: str, options: argparse.Namespace) -> dict[str, float]:
    """Seconds for the sum of two adapters of one layer, truncated: ours, and PEFT's `svd`."""
    side = options.side
    names = [f"layer-{spectrum}-{n}" for n in (0, 1)]
    paths = [
        write_lora(place / n, {"layer": (side, side)}, RANK, spectrum, k)
        for k, n in enumerate(names)
    ]
    with Registry(place / "home") as registry:
        inputs = [
            input_of(registry.load(path), w) for path, w in zip(paths, (0.7, 0.3), strict=True)
        ]
    ours = []
    for _ in range(11):
        start = time.perf_counter()
        planned = plan(inputs, Options(rank=RANK))
        found = adapter_of(planned, run_plan(planned))
        ours.append(time.perf_counter() - start)
    theirs, delta = with_peft(paths, side)
    roles = found.modules["layer"]
    mine = np.asarray(roles["lora_B"].read(), np.float64) @ roles["lora_A"].read()
    mine *= found.config["lora_alpha"] / found.config["r"]
    apart = np.linalg.norm(mine - delta) / np.linalg.norm(delta)
    return {"ours": statistics.median(ours), "peft": theirs, "apart": float(apart)}


def with_peft(paths: Sequence[Path], side: int) -> tuple[float, Any]:
    """Seconds of `add_weighted_adapter(combination_type="svd")`, and the delta that it made."""
    import peft
    import torch

    class Model(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = torch.nn.Linear(side, side, bias=False)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = peft.PeftModel.from_pretrained(Model(), paths[0], adapter_name="0")
        model.load_adapter(paths[1], adapter_name="1")
        start = time.perf_counter()
        model.base_model.add_weighted_adapter(["0", "1"], [0.7, 0.3], "sum", "svd", svd_rank=RANK)
        seconds = time.perf_counter() - start
        delta = model.base_model.model.layer.get_delta_weight("sum").detach().double().numpy()
    return seconds, delta


def show_sum(
    console: Console,
    layers: int,
    whole: Mapping[str, Sequence[Measured]],
    layer: Mapping[str, Mapping[str, float]],
    side: int,
) -> None:
    table = Table(title=f"sum of two adapters of rank {RANK}, truncated to {RANK}")
    for column in ("spectrum", "what", "seconds", "CPU s", "peak GB", "times PEFT", "apart"):
        table.add_column(column, justify="right" if column not in ("spectrum", "what") else "left")
    for spectrum, costs in whole.items():
        best = min(costs, key=lambda cost: cost.wall)
        memory = best.memory.anonymous / 1e9
        first = (f"{best.wall:.1f}", f"{best.cpu:.1f}", f"{memory:.2f}", "", "")
        table.add_row(spectrum, f"{layers} layers × {len(LLAMA_7B)}", *first)
        one = layer[spectrum]
        cells = (f"{one['ours']:.4f}", "", "", f"{one['peft'] / one['ours']:.0f}")
        table.add_row("", f"one of {side}²", *cells, f"{one['apart']:.1e}")
        table.add_row("", "PEFT's svd", f"{one['peft']:.2f}", "", "", "1", "")
    console.print(table)
    seconds = max(min(cost.wall for cost in costs) for costs in whole.values())
    ratio = min(one["peft"] / one["ours"] for one in layer.values())
    console.print(f"target {TARGET_SECONDS:g} s: {said(seconds <= TARGET_SECONDS)}")
    console.print(f"target {TARGET_RATIO:g} × PEFT: {said(ratio >= TARGET_RATIO)}")


# --- elements ---------------------------------------------------------------------------------


def bench_elements(options: argparse.Namespace, console: Console, place: Path) -> dict[str, Any]:
    """Memory of methods on elements, beside the dense deltas of one module."""
    out, into = (INNER, WIDTH) if options.side >= 2048 else (options.side * 2, options.side)
    shapes = {f"model.layers.{n}.mlp.up_proj": (out, into) for n in range(2)}
    pair = [write_lora(place / f"elements-{n}", shapes, RANK, "flat", n) for n in (0, 1)]
    idle = command(place, pair, options.cores, "--method", "sum")
    found = {}
    table = Table(title=f"two adapters, modules of {out} × {into}, truncated to rank {RANK}")
    for column in ("method", "seconds", "peak MB", "deltas MB", "beside them MB"):
        table.add_column(column, justify="left" if column == "method" else "right")
    dense = 2 * 4 * out * into
    for name in ("ties", "dare_linear", "della", "breadcrumbs", "sce", "slerp"):
        settings = [] if name in ("sce", "slerp") else ["-p", "density=0.5"]
        cost = command(place, pair, options.cores, "-m", name, *settings, "--rank", str(RANK))
        more = cost.memory.anonymous - dense
        found[name] = {**cost.record(), "beside": more}
        cells = (cost.memory.anonymous, dense, more)
        table.add_row(name, f"{cost.wall:.1f}", *(f"{each / 1e6:.0f}" for each in cells))
    console.print(table)
    console.print(f"the process itself, with a sum: {idle.memory.anonymous / 1e6:.0f} MB")
    most = max(one["beside"] for one in found.values())
    text = f"target one module's deltas + {TARGET_BYTES / 1e6:g} MB"
    console.print(f"{text}: {said(most <= TARGET_BYTES)}")
    return found


def said(reached: bool) -> str:
    return "reached" if reached else "missed"
