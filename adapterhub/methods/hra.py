"""HRA: a chain of Householder's reflections (Yuan et al., https://arxiv.org/abs/2405.17484).

    W' = W · (I − 2·û₁û₁ᵀ) · … · (I − 2·û_rû_rᵀ)      û = u / ‖u‖
    W' = W · (I − 2·UUᵀ)                            apply_GS: U is û made orthogonal, in their order

Sums are in fp64 and in a fixed order, so the bits are the same everywhere. A convolution's inputs
count its kernel's elements too; its stride, padding and dilation remain the base's, while peft's
forward pass takes the first stride and padding for both sides, and no dilation.

Role: hra_u, (in, r).
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from adapterhub.adapter import Adapter
from adapterhub.errors import NotMergeable
from adapterhub.methods.computed import fp32
from adapterhub.methods.generic import idle, problems, ranks, signature
from adapterhub.methods.meaning import Meaning, Transform, Values
from adapterhub.methods.mergeable import Settings, adapted, complete, replacements
from adapterhub.methods.rotations import Wide, folded, in_rows
from adapterhub.tensorfile import Tensor, shown

__all__ = ["idle", "meaning", "parts", "problems", "ranks", "signature"]
ROLE = "hra_u"


def meaning(adapter: Adapter, *, base_is_initialised: bool = False) -> Meaning:
    return complete(adapter, _own(adapter))


def parts(adapter: Adapter) -> Meaning:
    return (*_own(adapter), *replacements(adapter))


def _own(adapter: Adapter) -> Iterator[Transform]:
    orthogonal = bool(Settings(adapter).get("apply_GS"))
    for module, roles in adapted(adapter):
        yield _reflections(module, roles[ROLE], orthogonal)


def _reflections(module: str, tensor: Tensor, orthogonal: bool) -> Transform:
    def apply(weight: Values) -> Values:
        units = _units(module, tensor, orthogonal)

        def change(rows: Wide) -> Wide:
            given = rows.copy()
            for unit in units:
                rows -= 2.0 * folded((given if orthogonal else rows) * unit)[:, None] * unit
            return rows

        return in_rows(weight, change)

    return Transform(module, "weight", apply, (None, tensor.shape[0]), (ROLE,))


def _units(module: str, tensor: Tensor, orthogonal: bool) -> list[Wide]:
    """Raises NotMergeable for a vector without a direction."""
    units: list[Wide] = []
    for number, vector in enumerate(fp32(tensor).T.astype(np.float64)):
        for unit in units if orthogonal else ():
            vector = vector - folded(unit * vector) * unit
        length = np.sqrt(folded(vector * vector))
        if not length > 0:
            raise NotMergeable(
                f"{shown(module)}: vector {number} of {ROLE} has no direction to reflect in",
                remedy="train the adapter again, with another start",
            )
        units.append(vector / length)
    return units
