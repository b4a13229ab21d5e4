"""Layers that a plain Linear does not stand for, against PEFT's own forward pass."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from building import opened, read_adapter
from torch_models import Layers, adapted, saved

from adapterhub import merging as merge
from adapterhub.merging import Options, Source

torch = pytest.importorskip("torch")
peft = pytest.importorskip("peft")

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")


def check(tmp_path: Path, layers: Layers, **lora: Any) -> Any:
    """Train, merge, load and compare; the merge's report."""
    live = adapted(layers, tmp_path, **lora)
    plan = merge.plan(
        opened(tmp_path / "base"), [Source("it", read_adapter(tmp_path / "adapter"))], Options()
    )
    report = merge.run(plan, tmp_path / "out")
    loaded = saved(layers, tmp_path / "out")
    with torch.no_grad():
        got, want, bare = loaded(), live(), saved(layers, tmp_path / "base")()
    assert (want - bare).abs().max() > 0.01
    assert (got - want).abs().max() <= 1e-5
    return report


CONVOLUTIONS = [
    ("Conv1d", (3, 8, 3), (2, 3, 9), {}),
    ("Conv1d", (3, 8, 1), (2, 3, 9), {"stride": 2}),
    ("Conv2d", (3, 8, (3, 2)), (2, 3, 6, 5), {"padding": 1, "stride": 2}),
    ("Conv2d", (3, 8, 1), (2, 3, 4, 4), {}),
    ("Conv3d", (3, 8, (1, 2, 3)), (2, 3, 4, 4, 4), {"padding": 1}),
    ("Conv3d", (3, 8, (1, 1, 3)), (2, 3, 4, 4, 4), {}),
    ("Conv3d", (3, 8, 1), (2, 3, 4, 4, 4), {}),
]


@pytest.mark.parametrize("dora", [False, True])
@pytest.mark.parametrize(("kind", "sizes", "given", "options"), CONVOLUTIONS)
def test_convolutions(
    tmp_path: Path, kind: str, sizes: Any, given: Any, options: dict[str, Any], dora: bool
) -> None:
    layers = Layers(kind, sizes, given, options)
    check(tmp_path, layers, target_modules=["layer"], use_dora=dora)


@pytest.mark.parametrize("dora", [False, True])
@pytest.mark.parametrize("rslora", [False, True])
def test_linear_layers(tmp_path: Path, dora: bool, rslora: bool) -> None:
    lora = {"use_dora": dora, "use_rslora": rslora}
    check(tmp_path, Layers("Linear", (6, 8), (4, 6)), target_modules=["layer"], **lora)


@pytest.mark.parametrize("dora", [False, True])
def test_embeddings(tmp_path: Path, dora: bool) -> None:
    check(tmp_path, Layers("Embedding", (9, 6), (2, 5)), target_modules=["layer"], use_dora=dora)


def test_attention_that_packs_its_projections(tmp_path: Path) -> None:
    layers = Layers("MultiheadAttention", (8, 2), (2, 5, 8), {"batch_first": True})
    report = check(tmp_path, layers, target_modules=["layer"])
    assert report is not None
