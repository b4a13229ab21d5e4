"""AdaLoRA: singular values that were pruned (Zhang et al., https://arxiv.org/abs/2303.10512).

    ΔW = s · B · diag(E) · A     A: (r, in)   B: (out, r)   E: (r, 1)   s = alpha / (init_r + 1e-5)

Without a positive lora_alpha, r stands in its place. PEFT divides by the rank at the start, not by
what `rank_pattern` left of it: loading keeps it, and does not save it (peft 0.21.2,
`resize_modules_by_rank_pattern`). alpha_pattern, use_rslora and lora_bias change nothing in PEFT.
Of a convolution A is (r, in · kernel). A ⊙ E is rounded once to fp32. Roles: lora_A, lora_B,
lora_E.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from functools import partial

import numpy as np

from adapterhub.adapter import Adapter
from adapterhub.methods.computed import Computed, fp32
from adapterhub.methods.generic import idle, problems, ranks, signature
from adapterhub.methods.meaning import LowRank, Meaning, Shaped, ShapeOf, Values
from adapterhub.methods.mergeable import Roles, Settings, adapted, complete, replacements

__all__ = ["idle", "meaning", "parts", "problems", "ranks", "signature"]


def meaning(adapter: Adapter, *, base_is_initialised: bool = False) -> Meaning:
    return complete(adapter, _own(adapter))


def parts(adapter: Adapter) -> Meaning:
    return (*_own(adapter), *replacements(adapter))


def _own(adapter: Adapter) -> Iterator[Shaped]:
    settings = Settings(adapter)
    for module, roles in adapted(adapter):
        yield Shaped(module, partial(_pair, module, roles, _scale(settings, roles)), tuple(roles))


def _scale(settings: Settings, roles: Roles) -> float:
    alpha = float(settings.get("lora_alpha"))
    rank = roles["lora_A"].shape[0]
    return (alpha if alpha > 0 else rank) / (float(settings.get("init_r")) + 1e-5)


def _pair(module: str, roles: Roles, scale: float, shape_of: ShapeOf) -> LowRank:
    a, b, values = roles["lora_A"], roles["lora_B"], roles["lora_E"]
    shape = a.shape
    into = shape_of(module)[1:]
    if math.prod(into) == math.prod(a.shape[1:]):  # else the engine says what does not fit
        shape = (a.shape[0], *into)

    def compute() -> Values:
        wide = fp32(a).reshape(a.shape[0], math.prod(a.shape[1:]))
        return np.multiply(wide, fp32(values), out=wide).reshape(shape)

    return LowRank(module, Computed(shape, compute, (a, values)), b, scale, "linear", tuple(roles))
