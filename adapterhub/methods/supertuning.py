"""Super-Tuning: single entries, and a low-rank pair (https://arxiv.org/abs/2607.09287).

    ΔW = scatter(indices, values) + lora_alpha/r · B · A

`supertuning_indices` count the entries of (out, in) in C order. The pair stands in the hybrid form
only, where r is set; the change as a whole is rounded to fp32 twice. Indices that were not saved
(`save_precomputed_indices`) are those of the largest weights of the base, in an order that is not
settled between equal ones, of which a bf16 base has many: refused. Roles: supertuning_values,
supertuning_indices, supertuning_lora_A.weight, supertuning_lora_B.weight.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import numpy as np

from adapterhub.adapter import Adapter
from adapterhub.errors import NotMergeable
from adapterhub.methods.computed import Computed, fp32
from adapterhub.methods.generic import idle, problems, ranks, signature
from adapterhub.methods.meaning import Delta, Meaning, Shaped, ShapeOf, Values
from adapterhub.methods.mergeable import Roles, Settings, adapted, complete, product, replacements
from adapterhub.methods.random_factors import sides
from adapterhub.methods.scattered import places, scattered
from adapterhub.tensorfile import shown

PAIR = ("supertuning_lora_A.weight", "supertuning_lora_B.weight")

__all__ = ["idle", "meaning", "parts", "problems", "ranks", "signature"]


def meaning(adapter: Adapter, *, base_is_initialised: bool = False) -> Meaning:
    _refuse(adapter)
    return complete(adapter, _own(adapter))


def parts(adapter: Adapter) -> Meaning:
    return (*_own(adapter), *replacements(adapter))


def _refuse(adapter: Adapter) -> None:
    alpha = Settings(adapter).get("lora_alpha")
    for module, roles in adapted(adapter):
        if "supertuning_indices" not in roles:
            raise NotMergeable(
                f"{shown(module)} has no supertuning_indices, and the base does not tell them "
                "where weights are equal",
                remedy="load it with peft, set save_precomputed_indices and save it again",
            )
        if (PAIR[0] in roles) != (alpha is not None):
            raise NotMergeable(
                f"{shown(module)} has {'a' if alpha is None else 'no'} low-rank pair, and "
                f"lora_alpha is {alpha}",
                remedy="re-export the adapter with the config that it was trained with",
            )


def _own(adapter: Adapter) -> Iterator[Shaped]:
    alpha = Settings(adapter).get("lora_alpha")
    for module, roles in adapted(adapter):
        yield Shaped(module, partial(_delta, module, roles, alpha), tuple(roles))


def _delta(module: str, roles: Roles, alpha: float | None, shape_of: ShapeOf) -> Delta:
    shape = sides(module, shape_of)

    def compute() -> Values:
        flat = places(module, roles["supertuning_indices"].read(), shape[0] * shape[1])
        found = scattered(shape, flat, fp32(roles["supertuning_values"]))
        if alpha is None:
            return found
        a, b = (roles[role] for role in PAIR)
        low_rank = product(b, a)
        np.multiply(low_rank, np.float32(alpha / a.shape[0]), out=low_rank)
        return np.add(found, low_rank, out=found)

    return Delta(module, Computed(shape, compute, tuple(roles.values())), 1.0, tuple(roles))
