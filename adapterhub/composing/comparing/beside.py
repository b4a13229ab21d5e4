"""How large the weights of a base are, for norms of deltas relative to them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from adapterhub.adapter import Adapter
from adapterhub.base import Base
from adapterhub.composing.comparing.meeting import Addition
from adapterhub.errors import BaseMismatch, NotMergeable
from adapterhub.methods import BiasDelta, Delta, LowRank, Meaning
from adapterhub.registry.naming import Naming
from adapterhub.registry.places import sites
from adapterhub.registry.tied import seen
from adapterhub.registry.whole import spot
from adapterhub.tensorfile import DTYPES, FileTensor

_FLOATS = ("F64", "F32", "F16", "BF16")  # others are no weights without their scales
_PIECE_BYTES = 1 << 20
Run = tuple[str, int, int]  # a stored tensor, the first element and how many


class Weights:
    """The weights of one base that several adapters change; each is read once."""

    def __init__(self, base: Base, adapters: Sequence[tuple[Adapter, Meaning]]) -> None:
        self.naming = Naming(seen(base, base.model_class, adapters))
        self._known: dict[Run, float] = {}

    def norm(self, addition: Addition, config: Mapping[str, Any]) -> float | None:
        """Of what `addition` is added to; `config` is its adapter's. None where the base has no
        such weight, or not in plain floats."""
        try:
            runs = self._runs(addition, config)
        except (BaseMismatch, NotMergeable):
            return None
        if not runs or not all(self._is_plain(run) for run in runs):
            return None
        total = math.fsum(self._squares(run) for run in runs)
        return math.sqrt(total) if math.isfinite(total) else None

    def _is_plain(self, run: Run) -> bool:
        """Whether the files hold all of it, as floats: a view may have more rows than they do."""
        name, first, count = run
        tensor = self.naming.base.tensors[name]
        size = DTYPES[tensor.dtype].itemsize if tensor.dtype in _FLOATS else 0
        return size > 0 and (first + count) * size <= tensor.nbytes

    def _runs(self, addition: Addition, config: Mapping[str, Any]) -> list[Run]:
        found: dict[Run, None] = {}
        for part in (*(term.part for term in addition.terms), *addition.whole):
            found |= dict.fromkeys(self._run_of(part, config))
        return list(found)

    def _run_of(self, part: LowRank | Delta | BiasDelta, config: Mapping[str, Any]) -> list[Run]:
        if isinstance(part, LowRank):
            places = sites(self.naming, part, config)
            return [(each.stored, each.first, math.prod(each.shape)) for each in places]
        if isinstance(part, Delta):
            place = spot(self.naming, part)
            return [(place.stored, 0, math.prod(place.shape))] if place else []
        stored = f"{self.naming.stored(part.module)}.bias"
        there = self.naming.base.tensors.get(stored)
        if there is None or there.shape != part.value.shape:
            return []
        return [(stored, 0, math.prod(there.shape))]

    def _squares(self, run: Run) -> float:
        if run not in self._known:
            name, first, count = run
            self._known[run] = squares(self.naming.base.tensors[name], first, count)
        return self._known[run]


def squares(tensor: FileTensor, first: int, count: int) -> float:
    """Σ x² of `count` elements from `first` on, in fp64."""
    dtype = DTYPES[tensor.dtype]
    window = replace(
        tensor,
        shape=(count,),
        offset=tensor.offset + first * dtype.itemsize,
        nbytes=count * dtype.itemsize,
    )
    total = 0.0
    for piece in window.pieces(_PIECE_BYTES):
        values = np.frombuffer(piece, dtype).astype(np.float64)
        total += float(np.dot(values, values))
    return total
