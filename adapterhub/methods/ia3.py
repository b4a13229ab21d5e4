"""(IA)³: activations times a learned vector (Liu et al., https://arxiv.org/abs/2205.05638).

    outputs (keys, values)    W' = diag(l) · W,  b' = l ⊙ b      ia3_l: (out, 1)
    inputs (feed-forward)     W' = W · diag(l)                   ia3_l: (1, in)

Of a convolution the vector is (1, channels, 1, 1), and `feedforward_modules` says which it is.
Products of two fp32 are rounded once, so the bits are the same everywhere. Role: ia3_l.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np

from adapterhub.adapter import Adapter
from adapterhub.errors import NotMergeable
from adapterhub.methods.computed import fp32
from adapterhub.methods.generic import idle, problems, ranks, signature
from adapterhub.methods.meaning import Meaning, Transform, Values
from adapterhub.methods.mergeable import adapted, complete, replacements
from adapterhub.tensorfile import Tensor, shown

__all__ = ["idle", "meaning", "parts", "problems", "ranks", "signature"]
ROLE = "ia3_l"


def meaning(adapter: Adapter, *, base_is_initialised: bool = False) -> Meaning:
    return complete(adapter, _own(adapter))


def parts(adapter: Adapter) -> Meaning:
    return (*_own(adapter), *replacements(adapter))


def _own(adapter: Adapter) -> Iterator[Transform]:
    for module, roles in adapted(adapter):
        vector = roles[ROLE]
        if _is_of_inputs(adapter, module, vector):
            yield _inputs(module, vector)
        else:
            yield _outputs(module, vector, "weight")
            yield _outputs(module, vector, "bias")


def _is_of_inputs(adapter: Adapter, module: str, vector: Tensor) -> bool:
    if len(vector.shape) == 2:
        return vector.shape[0] == 1 and (vector.shape[1] != 1 or _is_named(adapter, module))
    return _is_named(adapter, module)


def _is_named(adapter: Adapter, module: str) -> bool:
    """As peft decides: a name of the list ends the module's path."""
    names = adapter.config.get("feedforward_modules") or ()
    if isinstance(names, str):
        raise NotMergeable(
            f"{shown(module)}: feedforward_modules is a pattern, and the shape of {ROLE} does not "
            "tell inputs from outputs",
            remedy="write feedforward_modules as a list of names",
        )
    return module.endswith(tuple(names))


def _inputs(module: str, vector: Tensor) -> Transform:
    """The columns of (out, in · kernel), each channel's kernel alike."""
    size = math.prod(vector.shape)

    def apply(weight: Values) -> Values:
        wide = np.repeat(fp32(vector).reshape(-1), weight.shape[1] // size)
        return np.multiply(weight, wide, out=weight)

    convolution = len(vector.shape) > 2
    shape = (None, size, *(None,) * (len(vector.shape) - 2)) if convolution else (None, size)
    return Transform(module, "weight", apply, shape, (ROLE,))


def _outputs(module: str, vector: Tensor, parameter: str) -> Transform:
    size = math.prod(vector.shape)

    def apply(value: Values) -> Values:
        rows = fp32(vector).reshape(-1, *(1,) * (value.ndim - 1))
        return np.multiply(value, rows, out=value)

    if parameter == "bias":
        return Transform(module, "bias", apply, (size,), (ROLE,), optional=True)
    more = len(vector.shape) - 2 if len(vector.shape) > 2 else 0
    return Transform(module, "weight", apply, (size, None, *(None,) * more), (ROLE,))
