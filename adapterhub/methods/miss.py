"""MiSS, once Bone: a small matrix repeated over the inputs (https://arxiv.org/abs/2409.15371).

    ΔW[o, i] = M[i mod r, o]                 M: (r, out)
    ΔW[o, i] = M[i mod r, o mod m]           init_weights "mini"; M: (r, m)
    W' = W + W_block · M_o + M_o             init_weights "bat"; M: (out/r, r, r), one for each
                                             row of blocks of (r, r)

It only moves and adds, or uses products in the order of DESIGN §4: the bits are the same
everywhere. Roles: miss_block, or bone_block of an older peft.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from adapterhub.adapter import Adapter
from adapterhub.errors import BaseMismatch
from adapterhub.methods.computed import Computed, fp32
from adapterhub.methods.generic import idle, problems, ranks, signature
from adapterhub.methods.meaning import Delta, Meaning, Shaped, ShapeOf, Transform, Values
from adapterhub.methods.mergeable import Settings, adapted, complete, multiplied, replacements
from adapterhub.methods.random_factors import sides
from adapterhub.tensorfile import Tensor, shown

__all__ = ["idle", "meaning", "parts", "problems", "ranks", "signature"]


def meaning(adapter: Adapter, *, base_is_initialised: bool = False) -> Meaning:
    return complete(adapter, _own(adapter))


def parts(adapter: Adapter) -> Meaning:
    return (*_own(adapter), *replacements(adapter))


def _own(adapter: Adapter) -> Iterator[Shaped | Transform]:
    form = Settings(adapter).given("init_weights")
    for module, roles in adapted(adapter):
        ((role, block),) = roles.items()
        yield _blocks(module, role, block) if form == "bat" else _added(module, role, block, form)


def _added(module: str, role: str, block: Tensor, form: object) -> Shaped:
    rank, columns = block.shape

    def make(shape_of: ShapeOf) -> Delta:
        out, into = sides(module, shape_of)
        if (out != columns and form != "mini") or out % columns:
            raise BaseMismatch(f"{shown(module)}: {role} is for {columns} outputs, not for {out}")

        def compute() -> Values:
            return np.tile(fp32(block).T, (out // columns, -(-into // rank)))[:, :into]

        return Delta(module, Computed((out, into), compute, (block,)), 1.0, (role,))

    return Shaped(module, make, (role,))


def _blocks(module: str, role: str, block: Tensor) -> Transform:
    count, side, _ = block.shape

    def apply(weight: Values) -> Values:
        into = weight.shape[1]
        if into % side:
            raise BaseMismatch(f"{shown(module)}: blocks of {side} do not divide {into} inputs")
        for number, values in enumerate(fp32(block)):
            rows = slice(number * side, (number + 1) * side)
            stack = weight[rows].reshape(side, -1, side).reshape(-1, side)  # (side · in/side, side)
            moved = multiplied(stack, values).reshape(side, -1, side) + values[:, None, :]
            weight[rows] += moved.reshape(side, into)
        return weight

    return Transform(module, "weight", apply, (count * side, None), (role,))
