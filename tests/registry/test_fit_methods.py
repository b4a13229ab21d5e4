"""Adapters of methods that this version does not merge, compared with a base all the same."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
import regkit

from adapterhub.adapter import Adapter
from adapterhub.base import open_base
from adapterhub.errors import BaseMismatch
from adapterhub.registry import Registry, fit
from adapterhub.tensorfile import ArrayTensor, Tensor


def adapter(method: str, modules: Mapping[str, Mapping[str, tuple[int, ...]]]) -> Adapter:
    tensors: dict[str, dict[str, Tensor]] = {
        module: {role: ArrayTensor(np.ones(shape, np.float32)) for role, shape in roles.items()}
        for module, roles in modules.items()
    }
    return Adapter(method, "peft", {"r": 2, "num_virtual_tokens": 3}, tensors)


Modules = dict[str, dict[str, tuple[int, ...]]]
LAYER_7 = regkit.QUERY.replace("layer.0", "layer.7")


@pytest.mark.parametrize(
    ("method", "modules", "why"),
    [
        ("ia3", {regkit.QUERY: {"ia3_l": (8, 1)}}, None),
        ("ia3", {regkit.QUERY: {"ia3_l": (9, 1)}}, "9"),
        ("ia3", {LAYER_7: {"ia3_l": (8, 1)}}, "layer.7"),
        ("prompt_tuning", {"": {"prompt_embeddings": (3, 8)}}, None),
        ("prompt_tuning", {"": {"prompt_embeddings": (3, 16)}}, "it is 8 wide, the prompt 16"),
    ],
)
def test_methods_without_parts_are_compared_by_their_sides(
    tmp_path: Path, method: str, modules: Modules, why: str | None
) -> None:
    base = open_base(regkit.save_base(tmp_path / "base", hidden_size=8))
    if why is None:
        fit.check(base, adapter(method, modules), name="x")
        return
    with pytest.raises(BaseMismatch, match="x does not fit the base") as caught:
        fit.check(base, adapter(method, modules), name="x")
    assert why in caught.value.details[0]


def test_add_records_the_base_of_any_method(home: Path, tmp_path: Path) -> None:
    base = regkit.save_base(tmp_path / "base", hidden_size=8)
    np.save(tmp_path / "good.npy", np.ones((3, 8), np.float32))
    np.save(tmp_path / "bad.npy", np.ones((3, 16), np.float32))
    with Registry() as registry:
        added = registry.add(tmp_path / "good.npy", base=base)
        record = registry.show(added.name)["manifest"]["base"]
        assert record["weights_root"] == registry.base.list()[0]["weights_root"]
        with pytest.raises(BaseMismatch, match="does not fit the base"):
            registry.add(tmp_path / "bad.npy", base=base)
