"""Layer-norm tuning: normalisations of their own (Zhao et al., https://arxiv.org/abs/2312.11420).

What was trained takes the place of the base's weight and bias: absolute values, so one adapter.
Roles: ln_tuning_layers.weight, ln_tuning_layers.bias.
"""

from __future__ import annotations

from collections.abc import Iterator

from adapterhub.adapter import Adapter
from adapterhub.methods.generic import idle, problems, ranks, signature
from adapterhub.methods.meaning import Meaning, Replacement
from adapterhub.methods.mergeable import adapted, complete, replacements

__all__ = ["idle", "meaning", "parts", "problems", "ranks", "signature"]
START = "ln_tuning_layers."


def meaning(adapter: Adapter, *, base_is_initialised: bool = False) -> Meaning:
    return complete(adapter, _own(adapter))


def parts(adapter: Adapter) -> Meaning:
    return (*_own(adapter), *replacements(adapter))


def _own(adapter: Adapter) -> Iterator[Replacement]:
    for module, roles in adapted(adapter):
        for role, tensor in roles.items():
            if role.startswith(START):
                yield Replacement(module, role.removeprefix(START), tensor, role)
