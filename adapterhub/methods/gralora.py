"""GraLoRA: a grid of low-rank blocks (Jung et al., https://arxiv.org/abs/2505.20355).

    ΔW = alpha/(r + hybrid_r) · (blocks + B_general · A_general)

    block (j, n) of k · k, rows j·o … and columns n·i …:   (A[n][:, part j] · B[j][part n])ᵀ

    gralora_A: (k, i, r)   gralora_B: (k, r, o)   in = k·i   out = k·o   a part: r/k of the ranks
    gralora_A_general.weight: (hybrid_r, in)   gralora_B_general.weight: (out, hybrid_r)

All of it is one product of rank k·r + hybrid_r, whose factors are the tensors' own values with
zeros between them. Roles: gralora_A, gralora_B, and the two of the hybrid form.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from adapterhub.adapter import Adapter
from adapterhub.errors import NotMergeable
from adapterhub.methods.computed import Computed, fp32
from adapterhub.methods.generic import idle, problems, ranks, signature
from adapterhub.methods.meaning import LowRank, Meaning, Values
from adapterhub.methods.mergeable import Roles, Settings, adapted, complete, replacements
from adapterhub.tensorfile import shown

__all__ = ["idle", "meaning", "parts", "problems", "ranks", "signature"]


def meaning(adapter: Adapter, *, base_is_initialised: bool = False) -> Meaning:
    _refuse(adapter)
    return complete(adapter, _own(adapter))


def parts(adapter: Adapter) -> Meaning:
    return (*_own(adapter), *replacements(adapter))


def _refuse(adapter: Adapter) -> None:
    for module, roles in adapted(adapter):
        if not _is_even(roles):
            blocks, _, rank = roles["gralora_A"].shape
            raise NotMergeable(
                f"{shown(module)}: rank {rank} is no multiple of gralora_k={blocks}, without which "
                "its blocks do not exchange ranks",
                remedy="re-export the adapter with the config that it was trained with",
            )


def _is_even(roles: Roles) -> bool:
    blocks, _, rank = roles["gralora_A"].shape
    return rank % blocks == 0


def _own(adapter: Adapter) -> Iterator[LowRank]:
    settings = Settings(adapter)
    alpha, beside = float(settings.get("alpha")), int(settings.get("hybrid_r"))
    for module, roles in adapted(adapter):
        if not _is_even(roles):
            continue
        scale = alpha / (roles["gralora_A"].shape[2] + beside)
        yield LowRank(module, _a(roles), _b(roles), scale, "linear", tuple(roles))


def _a(roles: Roles) -> Computed:
    """(k·r + hybrid_r, in); its rows are ordered by block row j, block column n, rank."""
    own, general = roles["gralora_A"], roles.get("gralora_A_general.weight")
    k, width, rank = own.shape

    def compute() -> Values:
        found = np.zeros((k, k, rank // k, k, width), np.float32)
        values = fp32(own).reshape(k, width, k, rank // k)
        for n in range(k):
            found[:, n, :, n] = np.moveaxis(values[n], 0, 2)
        blocks = found.reshape(k * rank, k * width)
        return np.concatenate([blocks, fp32(general)]) if general else blocks

    rows = k * rank + (general.shape[0] if general else 0)
    return Computed((rows, k * width), compute, tuple(t for t in (own, general) if t))


def _b(roles: Roles) -> Computed:
    """(out, k·r + hybrid_r), its columns ordered as the rows of `_a`."""
    own, general = roles["gralora_B"], roles.get("gralora_B_general.weight")
    k, rank, height = own.shape

    def compute() -> Values:
        found = np.zeros((k, height, k, rank), np.float32)
        values = fp32(own)
        for j in range(k):
            found[j, :, j] = values[j].T
        blocks = found.reshape(k * height, k * rank)
        return np.concatenate([blocks, fp32(general)], axis=1) if general else blocks

    columns = k * rank + (general.shape[1] if general else 0)
    return Computed((k * height, columns), compute, tuple(t for t in (own, general) if t))
