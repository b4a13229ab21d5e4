"""What is exact has the same bytes and the same digest wherever it is made."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from composing_building import SIZES, Q, V, given, lora
from safetensors.numpy import load_file, save_file

from adapterhub import composing, digest
from adapterhub.composing import Options
from adapterhub.composing import blocks as blocked
from adapterhub.composing.methods.table import TABLE

EXACT = [name for name, row in TABLE.items() if row.exact and row.kind == "factors"]
WEIGHTS = (0.7, -0.3, 0.11)
HERE = Path(__file__).parent
# Machines without this one's instructions, another BLAS kernel, other numbers of threads.
MACHINES: dict[str, dict[str, str]] = {
    "Prescott": {"OPENBLAS_CORETYPE": "Prescott", "NPY_DISABLE_CPU_FEATURES": "AVX2 FMA3"},
    "Haswell": {"OPENBLAS_CORETYPE": "Haswell", "OPENBLAS_NUM_THREADS": "1"},
    "threads": {"OPENBLAS_NUM_THREADS": "4", "OMP_NUM_THREADS": "4"},
    "no kernel": {"ADAPTERHUB_KERNEL": "numpy"},
}


def inputs(path: Path) -> list[Path]:
    """Factors that round, of one rank and large enough for BLAS and several blocks, and a head."""
    fields = {"modules_to_save": ["score"]}
    found = []
    for seed, more in ((1, {}), (2, {"use_rslora": True}), (3, {"lora_alpha": 5})):
        one = lora(path / f"a{seed}", seed, rank=16, r=16, **fields, **more)
        file = one / "adapter_model.safetensors"
        head = np.random.default_rng(seed).standard_normal((4, 6)).astype(np.float32)
        tensors = {**load_file(file), "base_model.model.score.weight": head}
        save_file(tensors, file, {"format": "pt"})
        found.append(one)
    return found


def digests(paths: list[Path], out: Path, threads: int | None = None) -> dict[str, dict[str, str]]:
    """Of every file that each exact method writes, the manifest among them."""
    found = {}
    for name in EXACT:
        density = {"density": 0.5} if len(TABLE[name].parameters) else {}
        sources = [given(path, weight) for path, weight in zip(paths, WEIGHTS, strict=True)]
        plan = composing.plan(sources, Options(name, density, whole="average", seed=3))
        assert plan.exact
        made = composing.adapter_of(plan, composing.run(plan, threads=threads))
        composing.write(plan, made, out / name)
        found[name] = {file.name: digest.of_file(file) for file in (out / name).iterdir()}
    return found


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The adapters' folder, and what this process makes of them."""
    path = tmp_path_factory.mktemp("anywhere")
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(SIZES, Q, (300, 200))
        patch.setitem(SIZES, V, (100, 200))
        paths = inputs(path)
        return paths, digests(paths, path / "here")


def test_the_manifest_says_so(made: Any) -> None:
    paths, found = made
    files = {"adapter_config.json", "adapter_model.safetensors", "adapterhub.json"}
    assert {"sum", "average", "task_arithmetic"} <= set(found)
    for name, here in found.items():
        assert set(here) == files
        manifest = json.loads((paths[0].parent / "here" / name / "adapterhub.json").read_text())
        assert manifest["lineage"]["parameters"]["reproducible"] is True
    assert found["sum"] != found["average"]


@pytest.mark.slow
@pytest.mark.parametrize(("elements", "threads"), [(1000, 3), (1 << 30, 1)])
def test_not_by_blocks_or_threads(
    made: Any, elements: int, threads: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    paths, found = made
    monkeypatch.setattr(blocked, "ELEMENTS", elements)
    monkeypatch.setattr(blocked, "THREADS", threads)
    assert digests(paths, tmp_path, threads) == found


@pytest.mark.parametrize(
    "machine",
    ["Prescott", *(pytest.param(name, marks=pytest.mark.slow) for name in list(MACHINES)[1:])],
)
def test_not_by_the_machine(made: Any, machine: str) -> None:
    paths, found = made
    code = "import test_compose_anywhere as it; it.elsewhere()"
    ran = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code, str(paths[0].parent), machine],
        env={**os.environ, **MACHINES[machine]},
        cwd=HERE,
        capture_output=True,
        text=True,
        check=True,
    )
    assert json.loads(ran.stdout) == found


def elsewhere() -> None:
    """As another process."""
    folder = Path(sys.argv[1])
    print(json.dumps(digests(sorted(folder.glob("a*")), folder / sys.argv[2])))
