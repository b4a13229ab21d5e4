"""Bottlenecks tell the width and the layers of their base."""

from __future__ import annotations

import numpy as np
import pytest

from adapterhub.adapter import Adapter
from adapterhub.methods import Signature, method
from adapterhub.methods.beside import bottlenecks
from adapterhub.tensorfile import ArrayTensor, Tensor

DOWN = "adapter_down.0.weight"


def adapter(**widths: int) -> Adapter:
    """Module, with `_` for dots → width."""
    modules: dict[str, dict[str, Tensor]] = {
        module.replace("_", "."): {DOWN: ArrayTensor(np.ones((4, width), np.float32))}
        for module, width in widths.items()
    }
    return Adapter("bottleneck", "adapterhub", {}, modules)


@pytest.mark.parametrize(
    ("widths", "expected"),
    [
        ({"layer_0_output": 8, "layer_1_output": 8}, Signature(width=8, layers=2)),
        ({"layer_0_output": 8, "layer_2_output": 8}, Signature(width=8)),
        ({"a_0": 8, "a_1": 8, "b_0": 8, "b_1": 8}, Signature(width=8, layers=2)),
        ({"a_0": 8, "b_0": 8, "b_1": 8}, Signature(width=8)),
        ({"a_0": 8, "a_1": 16}, Signature(layers=2)),
    ],
)
def test_width_and_layers(widths: dict[str, int], expected: Signature) -> None:
    found = adapter(**widths)
    assert bottlenecks(found) == expected
    assert method("bottleneck").implementation.signature(found) == expected


def test_with_a_norm_before_the_projection() -> None:
    down: Tensor = ArrayTensor(np.ones((4, 8), np.float32))
    found = Adapter("bottleneck", "adapterhub", {}, {"layer.0": {"adapter_down.1.weight": down}})
    assert bottlenecks(found) == Signature(width=8, layers=1)


def test_another_adapter_is_none() -> None:
    pair: dict[str, Tensor] = {"lora_A": ArrayTensor(np.ones((2, 8), np.float32))}
    assert bottlenecks(Adapter("lora", "peft", {"r": 2}, {"layer.0": pair})) is None
