"""Changes that only add, and whose shape only the weight of the base says.

Such a part is a Transform with `delta`: an engine may add up several, and what `apply` does has the
same bits.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from adapterhub.kernels import add_scaled
from adapterhub.methods.computed import Computed, fp32
from adapterhub.methods.meaning import Delta, Transform, Values
from adapterhub.tensorfile import Tensor

Make = Callable[[int, int], Values]


def fitted(
    module: str,
    roles: dict[str, Tensor],
    make: Make,
    *,
    scale: float = 1.0,
    shape: tuple[int | None, int | None] = (None, None),
    exact: bool = True,
) -> Transform:
    """`weight += scale · make(out, in)`; `make` reads the tensors `roles` and gives (out, in).

    `shape`: what is known of (out, in). `make` may refuse a size by raising BaseMismatch.
    """

    def delta(found: tuple[int, ...]) -> Delta:
        out, into = found

        def compute() -> Values:
            return make(out, into)

        value = Computed((out, into), compute, tuple(roles.values()), exact)
        return Delta(module, value, scale, tuple(roles))

    def apply(weight: Values) -> Values:
        part = delta(weight.shape)
        terms = [(np.float32(part.scale), fp32(part.value).reshape(-1))]
        return add_scaled(weight.reshape(-1), terms).reshape(weight.shape)

    return Transform(module, "weight", apply, shape, tuple(roles), exact=exact, delta=delta)
