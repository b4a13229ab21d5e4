"""Sparse changes from whole weights: FISH mask as t-few saves it, against the base."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from adapterhub.adapter import Adapter, BaseClaim, Reading
from adapterhub.base import Base
from adapterhub.errors import BaseMismatch, InvalidAdapter
from adapterhub.formats import fish_mask, native
from adapterhub.methods.shapes import PARAMETERS
from adapterhub.registry import checkout
from adapterhub.registry.naming import Naming
from adapterhub.store import Store
from adapterhub.tensorfile import ArrayTensor, Tensor

Array = NDArray[Any]
FLOATS = ("F32", "F16", "BF16")
_CARD = "README.md"


def is_against(reading: Reading) -> bool:
    """Whether it is whole weights with a mask, of which a base makes an adapter."""
    return [problem.code for problem in reading.fatal] == [fish_mask.AGAINST]


@contextmanager
def written(reading: Reading, base: Base, allow_pickle: bool, store: Store) -> Iterator[Path]:
    """A directory with the difference to `base`, as native, and with the model card.

    Raises what `difference` does, and PickleRefused without consent.
    """
    weights, masks = fish_mask.tensors(reading.path, allow_pickle)
    adapter = difference(base, weights, masks=masks)
    with checkout.scratch(store) as directory:
        native.write(adapter, directory)
        card = reading.path / _CARD
        if card.is_file() and not card.is_symlink():
            shutil.copyfile(card, directory / _CARD)
        yield directory


def difference(
    base: Base,
    trained: Mapping[str, Tensor],
    *,
    masks: Mapping[str, Tensor] | None = None,
    method: Literal["fishmask", "diff_pruning"] = "fishmask",
    claim: BaseClaim | None = None,
) -> Adapter:
    """What was trained, where it is not the base's, as an adapter of changed weights.

    `trained`: whole weights by the names of the trained model's parameters, as t-few's `finish.pt`
    of a FISH mask or any checkpoint has them. `masks`: t-few's `mask.bin`, a bool or 0/1 tensor of
    the full shape for each name; outside of it nothing may have changed. The change is
    fp32(trained) − fp32(base), rounded once. Raises BaseMismatch for a parameter that the base has
    not, or in another shape; InvalidAdapter for masks that do not go with the weights, for a change
    outside of them, for other parameters than weight and bias, and where nothing changed.
    """
    naming = Naming(base)
    if masks is not None and (strange := sorted(masks.keys() - trained.keys())):
        raise InvalidAdapter(f"the mask names {strange[0]}, which the trained weights lack")
    modules: dict[str, dict[str, Tensor]] = {}
    shapes: dict[str, list[int]] = {}
    for name in sorted(trained):
        if _is_twin(naming, name, trained):
            continue
        module, _, parameter = name.rpartition(".")
        change = _change(naming, name, trained[name], masks)
        flat = change.reshape(-1)
        places = np.flatnonzero(flat)
        if not len(places):
            continue
        if parameter not in PARAMETERS:
            raise InvalidAdapter(f"{name} has changed, and only weights and biases are taken")
        roles = modules.setdefault(module, {})
        roles[f"{parameter}.indices"] = ArrayTensor(places.astype(np.int64))
        roles[f"{parameter}.values"] = ArrayTensor(flat[places])
        shapes[name] = list(change.shape)
    if not modules:
        raise InvalidAdapter("nothing differs from the base", remedy="give the weights as trained")
    return Adapter(method, "native", {"shapes": shapes}, modules, claim or BaseClaim())


def _is_twin(naming: Naming, name: str, trained: Mapping[str, Tensor]) -> bool:
    """Whether it is another name of a tensor that is there as well, with equal values."""
    module, _, parameter = name.rpartition(".")
    twin = trained.get(naming.base.tied.get(f"{naming.stored(module)}.{parameter}", ""))
    return twin is not None and np.array_equal(twin.read(), trained[name].read())


def _change(
    naming: Naming, name: str, tensor: Tensor, masks: Mapping[str, Tensor] | None
) -> NDArray[np.float32]:
    """In the formula's orientation; fp32."""
    module, _, parameter = name.rpartition(".")
    there = naming.base.tensors.get(f"{naming.stored(module)}.{parameter}")
    if there is None or there.shape != tensor.shape:
        got = "no such tensor" if there is None else str(list(there.shape))
        raise BaseMismatch(f"{name} is {list(tensor.shape)}, the base has {got}")
    if not {tensor.dtype, there.dtype} <= set(FLOATS):
        raise InvalidAdapter(f"{name} is {tensor.dtype}, and {there.dtype} in the base")
    new, old = tensor.read().astype(np.float32), there.read().astype(np.float32)
    change: Array = new - old
    if not np.isfinite(change).all():
        raise InvalidAdapter(f"{name} holds values that are not finite")
    if masks is not None:
        _refuse_outside(name, change, masks.get(name))
    turned = parameter == "weight" and naming.kind(module) == "Conv1D"
    return np.ascontiguousarray(change.T) if turned else change


def _refuse_outside(name: str, change: Array, mask: Tensor | None) -> None:
    """Where the mask is 0, or there is none of this name, the weights are the base's."""
    if mask is not None and mask.shape != change.shape:
        raise InvalidAdapter(
            f"the mask of {name} is {list(mask.shape)}, the weight {list(change.shape)}"
        )
    outside = change if mask is None else change[mask.read() == 0]
    if count := int(np.count_nonzero(outside)):
        raise InvalidAdapter(
            f"{name} has changed in {count} places outside the mask",
            remedy="check that this is the base it was trained on, and its mask",
        )
