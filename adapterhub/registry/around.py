"""What a change of one parameter may know of the others: see `Surroundings`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import cast

import numpy as np

from adapterhub._introspect import ordered
from adapterhub.adapter import Adapter
from adapterhub.base import Base
from adapterhub.errors import NotMergeable
from adapterhub.methods import Meaning, Surroundings, method
from adapterhub.methods.meaning import Values
from adapterhub.registry.fit import target_class
from adapterhub.registry.naming import Naming
from adapterhub.tensorfile import FileTensor, Tensor


def meaning_of(
    adapter: Adapter, around: Callable[[], Surroundings], *, base_is_initialised: bool = False
) -> Meaning:
    """What the adapter means in a base; `around` is asked where its files alone do not tell."""
    implementation = method(adapter.method).implementation
    over = getattr(implementation, "meaning_over", None)
    if over is not None:
        return cast(Meaning, over(adapter, around()))
    return implementation.meaning(adapter, base_is_initialised=base_is_initialised)


def around_in(base: Base, adapter: Adapter) -> BaseAround:
    """The surroundings in the class that the adapter's heads ask for."""
    pair = (adapter, method(adapter.method).implementation.parts(adapter))
    return BaseAround(Naming(base, target_class(base, [pair])))


@dataclass(frozen=True)
class BaseAround:
    """The stored tensors of a base, by the trained model's names."""

    naming: Naming

    def read(self, module: str, parameter: str) -> Values | None:
        tensor = self.tensor(f"{self.naming.stored(module)}.{parameter}")
        if tensor is None:
            return None
        values = np.array(tensor.read(), np.float32)
        if values.ndim < 2:
            return values
        if parameter == "weight" and self.naming.kind(module) == "Conv1D":
            return np.ascontiguousarray(values.T)
        return values.reshape(values.shape[0], -1)

    def tensor(self, stored: str) -> Tensor | None:
        """As it was before any change."""
        found: Tensor | None = self.naming.base.tensors.get(stored)
        if found is not None and not isinstance(found, FileTensor):
            raise NotMergeable(
                f"{stored} is in memory, where it may have been changed before it is read",
                remedy="adapterhub merge BASE ADAPTER --out DIR, and load DIR",
            )
        return found

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
