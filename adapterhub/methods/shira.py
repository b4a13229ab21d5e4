"""SHiRA: single entries of the weight (Bhardwaj et al., https://arxiv.org/abs/2406.13175).

    ΔW[row[n], column[n]] = shira_weight[n]      shira_indices: (2, n), rows and columns

What is named twice is added twice, in order. Where nothing changes, −0 is added, which leaves the
bits of every weight. Roles: shira_weight (n,), shira_indices (2, n), whole numbers of any type.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

from adapterhub.adapter import Adapter
from adapterhub.methods.computed import Computed, fp32
from adapterhub.methods.generic import idle, problems, ranks, signature
from adapterhub.methods.meaning import Delta, Meaning, Shaped, ShapeOf, Values
from adapterhub.methods.mergeable import Roles, adapted, complete, replacements
from adapterhub.methods.random_factors import sides
from adapterhub.methods.scattered import places, scattered

__all__ = ["idle", "meaning", "parts", "problems", "ranks", "signature"]


def meaning(adapter: Adapter, *, base_is_initialised: bool = False) -> Meaning:
    return complete(adapter, _own(adapter))


def parts(adapter: Adapter) -> Meaning:
    return (*_own(adapter), *replacements(adapter))


def _own(adapter: Adapter) -> Iterator[Shaped]:
    for module, roles in adapted(adapter):
        yield Shaped(module, partial(_delta, module, roles), tuple(roles))


def _delta(module: str, roles: Roles, shape_of: ShapeOf) -> Delta:
    shape = sides(module, shape_of)
    weights, indices = roles["shira_weight"], roles["shira_indices"]

    def compute() -> Values:
        both = indices.read()
        rows, columns = (places(module, both[side], shape[side]) for side in (0, 1))
        return scattered(shape, rows * shape[1] + columns, fp32(weights))

    return Delta(module, Computed(shape, compute, (weights, indices)), 1.0, tuple(roles))
