"""BitFit: the biases, trained alone (Ben Zaken et al., https://arxiv.org/abs/2106.10199).

    b' = b₁        of every Linear and norm whose bias was trained

“Freeze and reconfigure” methods that keep biases only are the same on disk. Whole tensors are kept,
not differences, as everybody saves them: the merged bias has the trained bits. A head that was
trained beside them is whole as well. Roles: `replace:bias`, and `replace:weight` of a head.
"""

from __future__ import annotations

from adapterhub.adapter import REPLACE, Adapter, Problem
from adapterhub.methods import generic
from adapterhub.methods.generic import idle, ranks, signature
from adapterhub.methods.meaning import Meaning
from adapterhub.methods.mergeable import complete
from adapterhub.tensorfile import shown

__all__ = ["idle", "meaning", "parts", "problems", "ranks", "signature"]
_BIAS = f"{REPLACE}bias"
_MOST = 5


def problems(adapter: Adapter) -> list[Problem]:
    found = generic.problems(adapter)
    others = [f"{m}.{role}" for m, role, _ in adapter.tensors() if not role.startswith(REPLACE)]
    if others:
        listed = ", ".join(map(shown, others[:_MOST]))
        text = f"{len(others)} tensors are no biases: {listed}"
        found.append(Problem("odd-tensors", text, generic.REMEDY, fatal=True))
    odd = [m for m, role, t in adapter.tensors() if role == _BIAS and len(t.shape) != 1]
    if odd:
        text = f"{shown(odd[0])}.bias is no vector"
        found.append(Problem("shape", text, generic.REMEDY, fatal=True))
    if not any(role == _BIAS for _, role, _ in adapter.tensors()):
        found.append(Problem("no-own-tensors", "the weights hold no bias", generic.REMEDY, True))
    return found


def meaning(adapter: Adapter, *, base_is_initialised: bool = False) -> Meaning:
    return parts(adapter)


def parts(adapter: Adapter) -> Meaning:
    return complete(adapter, ())
