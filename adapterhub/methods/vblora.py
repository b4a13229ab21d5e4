"""VB-LoRA: factors out of a bank of vectors (Li et al., https://arxiv.org/abs/2405.15179).

    ΔW = B · A      a stretch of `vector_length` in a row of A, a column of B: Σ w[k] · bank[i[k]]

The k sum over the `topk` largest logits of that stretch, w their softmax. vblora_logits_A: (r,
in/length, vectors), vblora_logits_B: (out/length, r, vectors); or, with `save_only_topk_weights`,
…_topk_indices with the i and …_topk_weights with all w but the last, which is 1 − the others.
Exponentials of a library differ between machines; saved weights do not. Sums go in the order of k,
rounded to fp32 at each step. Shared: vblora_vector_bank (vectors, length).
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from adapterhub.adapter import Adapter
from adapterhub.methods.computed import Computed, fp32
from adapterhub.methods.generic import idle, problems, ranks, signature
from adapterhub.methods.meaning import LowRank, Meaning, Values
from adapterhub.methods.mergeable import Roles, Settings, adapted, complete, replacements
from adapterhub.methods.scattered import places
from adapterhub.tensorfile import Tensor

BANK = "vblora_vector_bank"

__all__ = ["idle", "meaning", "parts", "problems", "ranks", "signature"]


def meaning(adapter: Adapter, *, base_is_initialised: bool = False) -> Meaning:
    return complete(adapter, _own(adapter))


def parts(adapter: Adapter) -> Meaning:
    return (*_own(adapter), *replacements(adapter))


def _own(adapter: Adapter) -> Iterator[LowRank]:
    bank, topk = adapter.modules[""][BANK], int(Settings(adapter).get("topk"))
    for module, roles in adapted(adapter):
        a, b = (_mixed(module, roles, letter, bank, topk) for letter in "AB")
        yield LowRank(module, a, b, 1.0, "linear", tuple(roles))


def _mixed(module: str, roles: Roles, letter: str, bank: Tensor, topk: int) -> Computed:
    """A: (r, in) or B: (out, r)."""
    name = f"vblora_logits_{letter}"
    own = tuple(tensor for role, tensor in roles.items() if role.startswith(name))
    rows, columns = own[0].shape[:2]
    length = bank.shape[1]
    shape = (rows, columns * length) if letter == "A" else (rows * length, columns)

    def compute() -> Values:
        indices, weights = _chosen(roles, name, topk)
        found = _sum(fp32(bank), places(module, indices, bank.shape[0]), weights)
        return (found if letter == "A" else found.transpose(0, 2, 1)).reshape(shape)

    return Computed(shape, compute, (*own, bank), exact=name not in roles)


def _sum(bank: Values, indices: NDArray[np.int64], weights: Values) -> Values:
    found = np.zeros((*indices.shape[:-1], bank.shape[1]), np.float32)
    for k in range(indices.shape[-1]):
        found += np.multiply(weights[..., k, None], bank[indices[..., k]])
    return found


def _chosen(roles: Roles, name: str, topk: int) -> tuple[NDArray[np.int64], Values]:
    """Indices and weights, each (…, topk)."""
    if name not in roles:
        return _saved(roles[f"{name}_topk_indices"], roles[f"{name}_topk_weights"])
    logits = fp32(roles[name])
    indices: NDArray[np.int64] = np.argsort(-logits, axis=-1, kind="stable")[..., :topk]
    largest = np.take_along_axis(logits, indices, -1)
    powers = np.exp(largest - largest[..., :1])
    return indices, powers / powers.sum(axis=-1, keepdims=True)


def _saved(indices: Tensor, weights: Tensor) -> tuple[NDArray[np.int64], Values]:
    found = fp32(weights)
    last = np.ones((*found.shape[:-1], 1), np.float32)
    for k in range(found.shape[-1]):
        last[..., 0] -= found[..., k]
    return indices.read(), np.concatenate([found, last], axis=-1)
