"""What composing holds: factors, or the dense deltas of one module and some buffers."""

from __future__ import annotations

import math
import sys
import tracemalloc
from pathlib import Path
from typing import Any

import pytest
from composing_building import SIZES, given, lora

from adapterhub import composing
from adapterhub.composing import Options, blocks
from adapterhub.composing.methods.table import TABLE
from adapterhub.composing.window import keep_freed_memory

DENSE = [name for name, row in TABLE.items() if row.kind == "dense"]
FACTORS = [name for name, row in TABLE.items() if row.kind == "factors"]
QUICK = ("ties", "nuslerp", "peft_dare_ties_svd")


def peak(
    path: Path,
    name: str,
    patch: pytest.MonkeyPatch,
    shape: tuple[int, int],
    count: int,
    **more: Any,
) -> tuple[int, int]:
    """Most bytes held beside the interpreter's own, of two adapters, and those of the result."""
    modules = [f"model.layers.{layer}.mlp.up_proj" for layer in range(count)]
    for module in modules:
        patch.setitem(SIZES, module, shape)
    paths = [lora(path / f"{n}", n, modules, 4, r=4, lora_alpha=4 + n) for n in range(2)]
    wanted = {"density": 0.5, "select_topk": 0.5}
    known = {parameter.name for parameter in TABLE[name].parameters}
    asked = {key: value for key, value in wanted.items() if key in known}
    plan = composing.plan([given(each, 0.5) for each in paths], Options(name, asked))
    TABLE[name].apply  # noqa: B018 - its code is no part of what is measured
    keep_freed_memory()  # once in a process, untouched, and so no memory
    tracemalloc.start()
    try:
        done = composing.run(plan, **more)
        return tracemalloc.get_traced_memory()[1], sum(one.a.nbytes + one.b.nbytes for one in done)
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("name", FACTORS)
def test_factors_are_all_that_is_held(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    most, result = peak(tmp_path, name, monkeypatch, (900, 1100), 6, threads=2)
    inputs = 2 * 6 * 4 * 4 * (900 + 1100)
    assert most < 5 * inputs + (1 << 20)
    assert most < 4 * 900 * 1100 < 6 * 4 * 900 * 1100
    assert result <= inputs


@pytest.mark.parametrize(
    "name", [n if n in QUICK else pytest.param(n, marks=pytest.mark.slow) for n in DENSE]
)
def test_dense_deltas_of_one_module_at_a_time(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys.modules["adapterhub.composing.run"], "MOST_HELD", 0)
    monkeypatch.setattr(blocks, "ELEMENTS", 1 << 15)
    shape = (700, 1000)
    most, _ = peak(tmp_path, name, monkeypatch, shape, 4, threads=4)
    deltas = 2 * 4 * math.prod(shape)
    assert deltas < most < deltas + blocks.buffers(shape) + (2 << 20)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["ties", "sce"])
@pytest.mark.parametrize(("shape", "count"), [((4096, 11008), 2), ((2048, 2048), 14)])
def test_beside_one_module_there_are_500_mb(
    name: str, shape: tuple[int, int], count: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    most, result = peak(tmp_path, name, monkeypatch, shape, count, threads=16)
    assert most < 2 * 4 * math.prod(shape) + 500_000_000
    assert most > result
