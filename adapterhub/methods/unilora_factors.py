"""Uni-LoRA: factors out of one trained vector (Li et al., https://arxiv.org/abs/2506.00799).

    ΔW = B · A      A = θ[indices_A] ⊙ scales_A: (r, in)      B = θ[indices_B] ⊙ scales_B: (out, r)

Without `save_indices` PEFT deals the indices out to all adapted modules in the model's own order,
and the files do not even name the modules: refused here. Products are rounded once. Roles:
unilora_indices_A, unilora_scales_A, unilora_indices_B, unilora_scales_B; shared unilora_theta_d.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from adapterhub.adapter import Adapter
from adapterhub.errors import NotMergeable
from adapterhub.methods.computed import Computed, fp32
from adapterhub.methods.generic import idle, problems, ranks, signature
from adapterhub.methods.meaning import LowRank, Meaning, Values
from adapterhub.methods.mergeable import Roles, adapted, complete, replacements
from adapterhub.methods.scattered import places
from adapterhub.tensorfile import Tensor

THETA = "unilora_theta_d"
NEEDED = tuple(f"unilora_{what}_{letter}" for letter in "AB" for what in ("indices", "scales"))

__all__ = ["idle", "meaning", "parts", "problems", "ranks", "signature"]


def meaning(adapter: Adapter, *, base_is_initialised: bool = False) -> Meaning:
    _refuse(adapter)
    return complete(adapter, _own(adapter))


def parts(adapter: Adapter) -> Meaning:
    return (*_own(adapter), *replacements(adapter))


def _refuse(adapter: Adapter) -> None:
    found = list(adapted(adapter))
    if not found or any(role not in roles for _, roles in found for role in NEEDED):
        raise NotMergeable(
            "Uni-LoRA was saved without the indices of its vector (save_indices), which hang on "
            "the order of the modules in the model",
            remedy="load it with peft, set save_indices to true in its config, and save it again",
        )


def _own(adapter: Adapter) -> Iterator[LowRank]:
    theta = adapter.modules[""][THETA]
    for module, roles in adapted(adapter):
        a, b = (_gathered(module, roles, letter, theta) for letter in "AB")
        yield LowRank(module, a, b, 1.0, "linear", tuple(roles))


def _gathered(module: str, roles: Roles, letter: str, theta: Tensor) -> Computed:
    indices, scales = roles[f"unilora_indices_{letter}"], roles[f"unilora_scales_{letter}"]

    def compute() -> Values:
        values = fp32(theta)[places(module, indices.read(), theta.shape[0])]
        return np.multiply(values, fp32(scales), out=values)

    return Computed(indices.shape, compute, (theta, indices, scales))
