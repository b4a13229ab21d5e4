"""BEFT: biases of chosen projections (Huang et al., https://arxiv.org/abs/2509.15974).

    b' = b + beft_bias      beft_bias: (1, out)

A layer that has no bias cannot take one in a merge, in PEFT as here. Role: beft_bias.
"""

from __future__ import annotations

from collections.abc import Iterator

from adapterhub.adapter import Adapter
from adapterhub.methods.computed import Computed, fp32
from adapterhub.methods.generic import idle, problems, ranks, signature
from adapterhub.methods.meaning import BiasDelta, Meaning, Values
from adapterhub.methods.mergeable import adapted, complete, replacements
from adapterhub.tensorfile import Tensor

__all__ = ["idle", "meaning", "parts", "problems", "ranks", "signature"]
ROLE = "beft_bias"


def meaning(adapter: Adapter, *, base_is_initialised: bool = False) -> Meaning:
    return complete(adapter, _own(adapter))


def parts(adapter: Adapter) -> Meaning:
    return (*_own(adapter), *replacements(adapter))


def _own(adapter: Adapter) -> Iterator[BiasDelta]:
    for module, roles in adapted(adapter):
        yield BiasDelta(module, _flat(roles[ROLE]), 1.0, ROLE)


def _flat(tensor: Tensor) -> Computed:
    def compute() -> Values:
        return fp32(tensor).reshape(-1)

    return Computed((tensor.shape[1],), compute, (tensor,))
