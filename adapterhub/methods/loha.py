"""LoHa: two low-rank products, element by element (FedPara, https://arxiv.org/abs/2108.06098).

    ΔW = alpha/r · (w1_a · w1_b) ⊙ (w2_a · w2_b)      w1_a, w2_a: (out, r)   w1_b, w2_b: (r, in)

With `use_effective_conv2d` each product of a convolution is Tucker's: with t (r, r, kernel), w_a
(r, out) and w_b (r, in) it is P[o, i, …] = Σ t[p, q, …] · w_a[p, o] · w_b[q, i], whose bits hang on
the library that adds up. Roles: hada_w1_a, hada_w1_b, hada_w2_a, hada_w2_b, hada_t1, hada_t2.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from adapterhub.adapter import Adapter
from adapterhub.methods.computed import Computed, fp32
from adapterhub.methods.generic import idle, problems, ranks, signature
from adapterhub.methods.meaning import Delta, Meaning, Values
from adapterhub.methods.mergeable import Roles, Settings, adapted, complete, product, replacements

__all__ = ["idle", "meaning", "parts", "problems", "ranks", "signature"]


def meaning(adapter: Adapter, *, base_is_initialised: bool = False) -> Meaning:
    return complete(adapter, _own(adapter))


def parts(adapter: Adapter) -> Meaning:
    return (*_own(adapter), *replacements(adapter))


def _own(adapter: Adapter) -> Iterator[Delta]:
    settings = Settings(adapter)
    for module, roles in adapted(adapter):
        yield Delta(module, _value(roles), settings.over_rank(module), tuple(roles))


def _value(roles: Roles) -> Computed:
    a, b, core = roles["hada_w1_a"], roles["hada_w1_b"], roles.get("hada_t1")
    if core is None:
        shape: tuple[int, ...] = (a.shape[0], b.shape[1])
    else:
        shape = (a.shape[1], b.shape[1], *core.shape[2:])

    def compute() -> Values:
        one = _one(roles, "1")
        return np.multiply(one, _one(roles, "2"), out=one)

    return Computed(shape, compute, tuple(roles.values()), exact=core is None)


def _one(roles: Roles, number: str) -> Values:
    a, b = roles[f"hada_w{number}_a"], roles[f"hada_w{number}_b"]
    core = roles.get(f"hada_t{number}")
    if core is None:
        return product(a, b)
    parts = fp32(core), fp32(a), fp32(b)
    made: Values = np.einsum("pq...,po,qi->oi...", *parts, optimize=True)
    return made
