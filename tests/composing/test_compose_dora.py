"""DoRA hangs on the base's weights: taken as it is, whole, or refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from composing_building import SIZES, Q, V, composed, given, lora
from safetensors.numpy import load_file, save_file

from adapterhub.adapter import Adapter
from adapterhub.composing.cases import Case, Cases
from adapterhub.composing.methods.table import TABLE
from adapterhub.errors import AdapterHubError, NotMergeable
from adapterhub.methods import LowRank, method
from adapterhub.tensorfile import shown


def dora(path: Path, seed: int, modules: Any = (Q, V), **fields: Any) -> Path:
    lora(path, seed, modules, use_dora=True, **fields)
    file = path / "adapter_model.safetensors"
    dice = np.random.default_rng(seed + 100)
    sizes = {
        f"base_model.model.{module}.lora_magnitude_vector": dice.random(SIZES[module][0])
        for module in modules
    }
    found = {name: values.astype(np.float32) for name, values in sizes.items()}
    save_file({**load_file(file), **found}, file, {"format": "pt"})
    return path


def directions(adapter: Adapter) -> dict[str, tuple[Any, Any]]:
    """scale·B·A and the magnitudes of each module."""
    found = {}
    for part in method("lora").implementation.meaning(adapter):
        assert isinstance(part, LowRank) and part.magnitude is not None
        b, a = (np.asarray(t.read(), np.float64) for t in (part.b, part.a))
        found[part.module] = part.scale * b @ a, part.magnitude.read()
    return found


def assert_same(found: Adapter, *sources: Adapter) -> None:
    expected: dict[str, tuple[Any, Any]] = {}
    for source in sources:
        expected |= directions(source)
    made = directions(found)
    assert made.keys() == expected.keys() and found.config["use_dora"] is True
    for module, (delta, sizes) in made.items():
        assert np.allclose(delta, expected[module][0], rtol=1e-6, atol=1e-6)
        assert np.array_equal(sizes, expected[module][1])


def test_alone_on_each_module_it_stays_as_it_is(tmp_path: Path) -> None:
    a = given(dora(tmp_path / "a", 1, [Q], rank=2, lora_alpha=5))
    b = given(dora(tmp_path / "b", 2, [V], use_rslora=True))
    for name in ("sum", "task_arithmetic", "peft_cat"):
        adapter, report = composed([a, b], method=name)
        assert_same(adapter, a.adapter, b.adapter)
        assert report.reproducible
    once, _ = composed([a, b], weights={0: Cases((Case("q_proj", 1.0), Case(None, 7.0)))})
    assert_same(once, a.adapter, b.adapter)


def test_weights_that_add_up_to_1_are_the_adapter(tmp_path: Path) -> None:
    path = dora(tmp_path / "a", 1)
    for weights, name in (((0.25, 0.75), "sum"), ((2.0, -1.0), "sum"), ((5.0, 1.0), "average")):
        inputs = [given(path, weight) for weight in weights]
        assert_same(composed(inputs, method=name)[0], inputs[0].adapter)


def refused(inputs: Any, **options: Any) -> AdapterHubError:
    with pytest.raises(NotMergeable, match=r"is a DoRA: its magnitudes hang") as error:
        composed(inputs, **options)
    assert "merge it into the base" in error.value.remedy
    return error.value


def test_what_would_change_it_is_refused(tmp_path: Path) -> None:
    a, plain = given(dora(tmp_path / "a", 1)), given(lora(tmp_path / "plain", 3))
    assert refused([given(tmp_path / "a", 0.5)]).details == (shown(Q), shown(V))
    assert refused([a, given(dora(tmp_path / "b", 2, [V]))]).details == (shown(Q), shown(V))
    assert "a is a DoRA" in str(refused([plain, a]))
    refused([a, given(lora(tmp_path / "other", 4, [V]))])
    refused([given(dora(tmp_path / "c", 5, [Q])), given(lora(tmp_path / "d", 6, [V]))])
    for cut in ({"rank": 1}, {"energy": 0.9}, {"rank": Cases((Case("q_proj", 1),))}):
        refused([a], **cut)
    refused([a, given(dora(tmp_path / "e", 7, [V]))], method="average")


@pytest.mark.parametrize("name", [n for n, row in TABLE.items() if row.function != "total"])
def test_no_other_method_takes_it(name: str, tmp_path: Path) -> None:
    if TABLE[name].kind == "tensors":
        return
    a, b = given(dora(tmp_path / "a", 1)), given(dora(tmp_path / "b", 2))
    refused([a, b], method=name)
