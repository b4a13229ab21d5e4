"""Every method on every layout: read again, loaded by PEFT, computed as the dense deltas say."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from composing_building import given as read

from adapterhub import composing
from adapterhub.composing import Options
from adapterhub.composing.methods.table import TABLE, method
from adapterhub.formats import read as read_files

torch = pytest.importorskip("torch")
pytest.importorskip("peft")
import layouts_building as layouts  # noqa: E402

ON_LORAS = [name for name, row in TABLE.items() if row.kind != "tensors"]
THINNED = {"density": 0.6, "select_topk": 0.6, "t": 0.3, "epsilon": 0.2}
pytestmark = [
    pytest.mark.usefixtures("without_cards"),
    pytest.mark.filterwarnings("ignore:fan_in_fan_out is set to"),
]


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[Path]]:
    """Of one rank, with different scales; the second leaves a module out."""
    path = tmp_path_factory.mktemp("layouts")
    found = {}
    for kind, names in layouts.TARGETS.items():
        rest = {"use_rslora": True, "target_modules": names[:-1]}
        one = layouts.adapter(path / kind / "a", kind, 3)
        found[kind] = [one, layouts.adapter(path / kind / "b", kind, 4, **rest)]
    return found


def made(paths: list[Path], out: Path, weights: tuple[float, ...], name: str, **more: Any) -> Any:
    inputs = [read(path, weight) for path, weight in zip(paths, weights, strict=True)]
    plan = composing.plan(inputs, Options(method=name, **more))
    adapter = composing.adapter_of(plan, composing.run(plan))
    composing.write(plan, adapter, out)
    again = read_files(out)
    assert again.fatal == () and again.adapter is not None
    return again.adapter


def assert_computed(kind: str, out: Path, deltas: dict[str, Any]) -> None:
    """PEFT's forward pass against the base's own with dense deltas."""
    with torch.no_grad():
        found = layouts.loaded(kind, out)(layouts.given())
    wanted = layouts.expected(kind, deltas)
    for name, value in wanted.items():
        torch.testing.assert_close(found[name].double(), value, rtol=1e-4, atol=1e-4, msg=name)


def marked(name: str, kind: str) -> Any:
    quick = kind == layouts.MODULES or name in ("sum", "ties", "tsv", "peft_linear")
    return pytest.param(name, kind, marks=[] if quick else pytest.mark.slow)


@pytest.mark.parametrize(
    ("name", "kind"), [marked(name, kind) for name in ON_LORAS for kind in layouts.TARGETS]
)
def test_every_method_on_every_layout(
    name: str, kind: str, pairs: dict[str, list[Path]], tmp_path: Path
) -> None:
    known = {parameter.name for parameter in method(name).parameters}
    asked = {key: value for key, value in THINNED.items() if key in known}
    adapter = made(pairs[kind], tmp_path / "out", (0.8, 0.5), name, parameters=asked)
    deltas = layouts.dense(kind, adapter)
    assert all(np.linalg.norm(each) > 0.1 for each in deltas.values())
    assert len(deltas) == {layouts.MODULES: 6, layouts.FUSED: 3}[kind]
    assert_computed(kind, tmp_path / "out", deltas)


def test_parameters_alone(tmp_path: Path) -> None:
    """Adapters of experts only, whose configs name no module."""
    only = {"target_modules": None}
    paths = [layouts.adapter(tmp_path / n, layouts.FUSED, ord(n), **only) for n in "ab"]
    adapter = made(paths, tmp_path / "out", (0.8, -0.5), "sum")
    deltas = layouts.dense(layouts.FUSED, adapter)
    assert deltas.keys() == {"experts.weight"}
    assert_computed(layouts.FUSED, tmp_path / "out", deltas)


@pytest.mark.parametrize("kind", layouts.TARGETS)
def test_experts_and_convolutions_of_several_ranks(kind: str, tmp_path: Path) -> None:
    """The dense deltas of the result are the sum of the inputs', and PEFT computes it."""
    paths = [
        layouts.adapter(tmp_path / n, kind, ord(n), r=rank, use_rslora=rs)
        for n, rank, rs in (("a", 2, False), ("b", 4, True), ("c", 7, False))
    ]
    weights = (0.8, -0.5, 1.5)
    deltas = layouts.dense(kind, made(paths, tmp_path / "out", weights, "sum"))
    terms = [layouts.dense(kind, read(path).adapter) for path in paths]
    for name, delta in deltas.items():
        total = sum(weight * term[name] for weight, term in zip(weights, terms, strict=True))
        np.testing.assert_allclose(delta, total, rtol=0, atol=1e-6)
    assert_computed(kind, tmp_path / "out", deltas)
