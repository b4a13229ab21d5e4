"""What a change of one parameter may know of the others: see `Surroundings`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from adapterhub._introspect import ordered
from adapterhub.errors import NotMergeable
from adapterhub.methods.meaning import Values
from adapterhub.registry.naming import Naming
from adapterhub.tensorfile import FileTensor


@dataclass(frozen=True)
class BaseAround:
    """The stored tensors of a base, by the trained model's names."""

    naming: Naming

    def read(self, module: str, parameter: str) -> Values | None:
        tensor = self.naming.base.tensors.get(f"{self.naming.stored(module)}.{parameter}")
        if tensor is None:
            return None
        if not isinstance(tensor, FileTensor):  # of a live model, where it may be changed by now
            raise NotMergeable(
                f"what becomes of {module} hangs on its {parameter}, which changes too while the "
                "model is in memory",
                remedy="adapterhub merge BASE ADAPTER --out DIR, and load DIR",
            )
        values = np.array(tensor.read(), np.float32)
        if values.ndim < 2:
            return values
        if parameter == "weight" and self.naming.kind(module) == "Conv1D":
            return np.ascontiguousarray(values.T)
        return values.reshape(values.shape[0], -1)

    def linears(self) -> dict[str, tuple[int, int]] | None:
        result = self.naming.result
        if result is None or result.live:
            return None
        found = {}
        for stored, tensor in self.naming.base.in_memory(result).tensors.items():
            path, _, parameter = (self._in_result(stored) or "").rpartition(".")
            kind = result.module(path)
            if parameter == "weight" and kind and kind.kind in ("Linear", "Conv1D"):
                out, into = tensor.shape[:: -1 if kind.kind == "Conv1D" else 1]
                found[path] = (out, into)
        return found

    def _in_result(self, stored: str) -> str | None:
        naming = self.naming
        return naming.written(stored) if naming.target else naming.base.in_class(stored)

    def ordered(self, modules: Sequence[str]) -> list[str] | None:
        kind, result = self.naming.base.model_type, self.naming.result
        return ordered(kind, result.name, modules) if kind and result else None
