"""DeLoRA: directions and a strength apart (Bini et al., https://arxiv.org/abs/2503.18225).

    ΔW = B · diag(λ/r / (‖A_i‖ · ‖B_i‖)) · A · diag(w)        A: (r, in)   B: (out, r)   λ: (1,)

A_i is a row of A, B_i a column of B, norms are no less than 1e-4, and w: (in,) holds the norms of
the columns of the base's weight, as they were when the training began and as they are saved. Sums
of squares are folded in halves in fp64, so the bits are the same everywhere; what multiplies A and
B is rounded to fp32, the products too. Roles: delora_A, delora_B, delora_lambda, delora_w_norm.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from adapterhub.adapter import Adapter
from adapterhub.errors import NotMergeable
from adapterhub.methods.computed import Computed, fp32
from adapterhub.methods.generic import idle, problems, ranks, signature
from adapterhub.methods.meaning import LowRank, Meaning, Values
from adapterhub.methods.mergeable import Roles, adapted, complete, replacements
from adapterhub.tensorfile import shown

LEAST = np.float32(1e-4)

__all__ = ["idle", "meaning", "parts", "problems", "ranks", "signature"]


def meaning(adapter: Adapter, *, base_is_initialised: bool = False) -> Meaning:
    _refuse(adapter)
    return complete(adapter, _own(adapter))


def parts(adapter: Adapter) -> Meaning:
    return (*_own(adapter), *replacements(adapter))


def _refuse(adapter: Adapter) -> None:
    for module, roles in adapted(adapter):
        if "delora_w_norm" not in roles:
            raise NotMergeable(
                f"{shown(module)} has no delora_w_norm, the norms of the base's columns",
                remedy="load it with peft and save it again",
            )


def _own(adapter: Adapter) -> Iterator[LowRank]:
    for module, roles in adapted(adapter):
        if "delora_w_norm" in roles:
            yield LowRank(module, _a(roles), _b(roles), 1.0, "linear", tuple(roles))


def _a(roles: Roles) -> Computed:
    a, norms = roles["delora_A"], roles["delora_w_norm"]
    return Computed(a.shape, lambda: np.multiply(fp32(a), fp32(norms)), (a, norms))


def _b(roles: Roles) -> Computed:
    a, b, strength = roles["delora_A"], roles["delora_B"], roles["delora_lambda"]

    def compute() -> Values:
        lengths = _norms(fp32(a)) * _norms(np.ascontiguousarray(fp32(b).T))
        factors = fp32(strength).astype(np.float64) / a.shape[0] / lengths
        return np.multiply(fp32(b), factors.astype(np.float32))

    return Computed(b.shape, compute, (a, b, strength))


def _norms(rows: Values) -> NDArray[np.float64]:
    squares = np.square(rows.astype(np.float64))
    while squares.shape[1] > 1:
        half = squares.shape[1] // 2
        squares[:, :half] += squares[:, squares.shape[1] - half :]
        squares = squares[:, : squares.shape[1] - half]
    return np.maximum(np.sqrt(squares[:, 0]), np.float64(LEAST))
