"""HiRA: a Hadamard product with the weight (Huang et al., https://openreview.net/forum?id=TwJrTz9cRS).

    W' = W + W ⊙ (B·A)         A: (r, in), or (r, in, *kernel) of a convolution
                              B: (out, r), or (out, r, 1 …)
    W' = W + W ⊙ (B·A)ᵀ        of an embedding (vocabulary, dim); A: (r, vocabulary), B: (dim, r)

No scaling. The product is in the order of DESIGN §4 and rounded to fp32, as are the two steps after
it. Roles: hira_A, hira_B, hira_embedding_A, hira_embedding_B.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np

from adapterhub.adapter import Adapter
from adapterhub.methods.computed import fp32
from adapterhub.methods.generic import idle, problems, ranks, signature
from adapterhub.methods.meaning import Meaning, Transform, Values
from adapterhub.methods.mergeable import Roles, adapted, complete, multiplied, replacements
from adapterhub.tensorfile import Tensor

__all__ = ["idle", "meaning", "parts", "problems", "ranks", "signature"]


def meaning(adapter: Adapter, *, base_is_initialised: bool = False) -> Meaning:
    return complete(adapter, _own(adapter))


def parts(adapter: Adapter) -> Meaning:
    return (*_own(adapter), *replacements(adapter))


def _own(adapter: Adapter) -> Iterator[Transform]:
    for module, roles in adapted(adapter):
        yield _change(module, roles)


def _change(module: str, roles: Roles) -> Transform:
    embeds = "hira_embedding_A" in roles
    a, b = sorted(roles)  # …_A, …_B
    shape: tuple[int | None, ...] = (roles[b].shape[0], *roles[a].shape[1:])

    def apply(weight: Values) -> Values:
        gains = multiplied(_matrix(roles[b]), _matrix(roles[a]))
        weight += weight * (gains.T if embeds else gains)
        return weight

    return Transform(module, "weight", apply, shape[::-1] if embeds else shape, (a, b))


def _matrix(tensor: Tensor) -> Values:
    values: Values = fp32(tensor)
    return np.reshape(values, (tensor.shape[0], math.prod(tensor.shape[1:])))
