"""A sparse set of changed weights: FISH mask and diff pruning.

    w'[indices[i]] = w[indices[i]] + values[i],     all else as it was

FISH mask (Sung et al., https://arxiv.org/abs/2111.09839) trains the weights of the highest Fisher
information, whose places its mask says; diff pruning (Guo et al., https://arxiv.org/abs/2012.07463)
learns z ⊙ w, sparse by an L₀ penalty, one by one or by structures. What is left of either is where
and by how much, so that both are one function here. Whole trained weights and a mask, as t-few
saves them, become this against the base: `registry.sparse`.

Roles of a module: `weight.indices` (n,) int64, strictly ascending, and `weight.values` (n,), fp32
or narrower; `bias.indices` and `bias.values` so too. `shapes` in the config: see `shapes`. Where
nothing changes, −0 is added, which leaves the bits of every weight (while the adapter's own weight
is not negative).
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np

from adapterhub.adapter import Adapter, Problem
from adapterhub.errors import InvalidAdapter
from adapterhub.methods import generic, shapes
from adapterhub.methods.computed import Computed, fp32
from adapterhub.methods.generic import idle, ranks
from adapterhub.methods.meaning import Delta, Meaning, Values
from adapterhub.methods.mergeable import Roles, complete
from adapterhub.methods.signature import Signature
from adapterhub.tensorfile import Tensor, shown

__all__ = ["idle", "meaning", "parts", "problems", "ranks", "signature"]


def problems(adapter: Adapter) -> list[Problem]:
    found = generic.problems(adapter)
    if not any(problem.fatal for problem in found):
        found += shapes.problems(adapter)
    if not any(problem.fatal for problem in found):
        found += _index_problems(adapter)
    return found


def _index_problems(adapter: Adapter) -> Iterator[Problem]:
    for module, parameter in shapes.changed(adapter):
        roles = adapter.modules[module]
        size = math.prod(shapes.shape(adapter, module, parameter))
        said = _wrong(roles[f"{parameter}.indices"], size)
        if said:
            text = f"{shown(f'{module}.{parameter}.indices')} {said}"
            yield Problem("indices", text, generic.REMEDY, fatal=True)
            return


def _wrong(tensor: Tensor, size: int) -> str:
    """Why these cannot be indices of `size` elements; "" if they can."""
    if tensor.dtype != "I64":
        return f"is {tensor.dtype}, expected I64"
    indices = tensor.read()
    if not len(indices):
        return ""
    if (np.diff(indices) <= 0).any():
        return "does not ascend strictly"
    if indices[0] < 0 or indices[-1] >= size:
        outside = indices[0] if indices[0] < 0 else indices[-1]
        return f"holds {outside}, and the parameter has {size} elements"
    return ""


def signature(adapter: Adapter) -> Signature:
    return shapes.signature(adapter, generic.signature(adapter))


def meaning(adapter: Adapter, *, base_is_initialised: bool = False) -> Meaning:
    return parts(adapter)


def parts(adapter: Adapter) -> Meaning:
    return complete(adapter, _own(adapter))


def _own(adapter: Adapter) -> Iterator[Delta]:
    for module, parameter in shapes.changed(adapter):
        roles, shape = adapter.modules[module], shapes.shape(adapter, module, parameter)
        names = (f"{parameter}.indices", f"{parameter}.values")
        yield Delta(module, dense(roles, parameter, shape), 1.0, names, parameter)


def dense(roles: Roles, parameter: str, shape: tuple[int, ...]) -> Computed:
    """The change with −0 where there is none; the indices are checked again when it is read."""
    indices, values = roles[f"{parameter}.indices"], roles[f"{parameter}.values"]

    def compute() -> Values:
        size = math.prod(shape)
        if said := _wrong(indices, size):
            raise InvalidAdapter(f"{parameter}.indices {said}", remedy=generic.REMEDY)
        found = np.full(size, -0.0, np.float32)
        found[indices.read()] = fp32(values)
        return found.reshape(shape)

    return Computed(shape, compute, (indices, values))
