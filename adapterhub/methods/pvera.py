"""PVeRA: VeRA with a distribution over its vectors (https://arxiv.org/abs/2512.07703).

VeRA's formula with the mean, for which the first half of the ranks of A and of d stands; the second
half is the logarithm of a variance, and is for training. With `sample_at_inference` every forward
pass draws anew, and no weight does what it does. Roles: pvera_lambda_d (2r,), pvera_lambda_b
(out,); shared pvera_A (2r, in), pvera_B (out, r).
"""

from __future__ import annotations

from adapterhub.adapter import Adapter
from adapterhub.errors import NotMergeable
from adapterhub.methods import projections
from adapterhub.methods.generic import idle, problems, ranks, signature
from adapterhub.methods.meaning import Meaning
from adapterhub.methods.mergeable import complete, replacements
from adapterhub.methods.vera import shaped

__all__ = ["idle", "meaning", "parts", "problems", "ranks", "signature"]
PREFIX = "pvera"


def meaning(adapter: Adapter, *, base_is_initialised: bool = False) -> Meaning:
    if adapter.config.get("sample_at_inference"):
        raise NotMergeable(
            "sample_at_inference is set: this adapter is another one in every forward pass",
            remedy="set it to false in adapter_config.json to merge the mean",
        )
    return complete(adapter, shaped(adapter, PREFIX, projections.pvera))


def parts(adapter: Adapter) -> Meaning:
    return (*shaped(adapter, PREFIX, projections.pvera), *replacements(adapter))
