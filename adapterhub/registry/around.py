"""What a change of one parameter may know of the others: see `Surroundings`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from adapterhub._introspect import ordered
from adapterhub.methods.meaning import Values
from adapterhub.registry.naming import Naming


@dataclass(frozen=True)
class BaseAround:
    """The stored tensors of a base, by the trained model's names."""

    naming: Naming

    def read(self, module: str, parameter: str) -> Values | None:
        tensor = self.naming.base.tensors.get(f"{self.naming.stored(module)}.{parameter}")
        if tensor is None:
            return None
        values = np.array(tensor.read(), np.float32)
        if values.ndim < 2:
            return values
        if parameter == "weight" and self.naming.kind(module) == "Conv1D":
            return np.ascontiguousarray(values.T)
        return values.reshape(values.shape[0], -1)

    def ordered(self, modules: Sequence[str]) -> list[str] | None:
        kind, result = self.naming.base.model_type, self.naming.result
        return ordered(kind, result.name, modules) if kind and result else None
