"""The original bits of what is changed: kept in memory, or read again from the base's files."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any, Protocol

from adapterhub.base import Base
from adapterhub.errors import BaseMismatch, NotSupported
from adapterhub.registry.naming import Naming
from adapterhub.runtime.changing import copy, put
from adapterhub.runtime.live import Live, in_memory
from adapterhub.tensorfile import DTYPES, FileTensor, Tensor
from adapterhub.tensorfile.tensors import PIECE_BYTES

if TYPE_CHECKING:
    import torch


class Originals(Protocol):
    """Of one model, by the names of its tensors."""

    @property
    def nbytes(self) -> int:
        """Memory that they take, in bytes."""

    def keep(self, live: Live, names: Iterable[str]) -> None:
        """Have those of `names` ready for `restore`; nothing is kept where one cannot be."""

    def values(self) -> Mapping[str, Tensor]:
        """What is kept, by name, for a merge to start from."""

    def value(self, name: str) -> Tensor | None:
        """One of `values`."""

    def restore(self, held: torch.Tensor, name: str) -> None: ...

    def drop(self, names: Iterable[str]) -> None: ...


class InMemory:
    """A copy of each changed tensor, on the CPU."""

    def __init__(self) -> None:
        self._kept: dict[str, torch.Tensor] = {}

    @property
    def nbytes(self) -> int:
        return sum(tensor.nbytes for tensor in self._kept.values())

    def keep(self, live: Live, names: Iterable[str]) -> None:
        import torch

        new = {}
        for name in names:
            if name not in self._kept:
                data = live.held[name].detach()
                new[name] = torch.empty(data.shape, dtype=data.dtype)
                copy(new[name], data)
        self._kept |= new

    def values(self) -> Mapping[str, Tensor]:
        return {name: in_memory(tensor) for name, tensor in self._kept.items()}

    def value(self, name: str) -> Tensor | None:
        found = self._kept.get(name)
        return None if found is None else in_memory(found)

    def restore(self, held: torch.Tensor, name: str) -> None:
        put(held, self._kept[name])

    def drop(self, names: Iterable[str]) -> None:
        for name in names:
            self._kept.pop(name, None)


class InFiles:
    """The base's files, which hold the same bits: compared when a tensor is first changed."""

    def __init__(self, base: Base) -> None:
        self.base = base
        self._naming = Naming(base.in_memory(base.model_class))
        self._kept: dict[str, FileTensor] = {}

    @property
    def nbytes(self) -> int:
        return 0

    def keep(self, live: Live, names: Iterable[str]) -> None:
        """Raises NotSupported, BaseMismatch where the files do not hold these very bits."""
        new = {name: self._found(name) for name in names if name not in self._kept}
        absent = sorted(name for name, tensor in new.items() if tensor is None)
        if absent:
            raise NotSupported(
                f"{self.base.path} does not hold {len(absent)} of the tensors under names of their "
                "own, so that they cannot be read again from there",
                details=absent[:20],
                remedy='restore="memory" keeps them instead',
            )
        found = {name: tensor for name, tensor in new.items() if tensor is not None}
        other = sorted(name for name, tensor in found.items() if not _same(tensor, live, name))
        if other:
            raise BaseMismatch(
                f"{self.base.path} holds other bits than the model in memory",
                details=other[:20],
                remedy='give the base, and the dtype, that it was loaded from; or restore="memory"',
            )
        self._kept |= found

    def _found(self, name: str) -> FileTensor | None:
        module, _, parameter = name.rpartition(".")
        stored = f"{self._naming.stored(module)}.{parameter}"
        return self._naming.base.tensors.get(stored)

    def values(self) -> Mapping[str, Tensor]:
        if self._kept:
            self.base.check_unchanged()
        return dict(self._kept)

    def value(self, name: str) -> Tensor | None:
        return self._kept.get(name)

    def restore(self, held: torch.Tensor, name: str) -> None:
        self.base.check_unchanged()
        put(held, _as_torch(self._kept[name], held))

    def drop(self, names: Iterable[str]) -> None:
        for name in names:
            self._kept.pop(name, None)


def _same(tensor: FileTensor, live: Live, name: str) -> bool:
    there = live.tensors[name]
    if (tensor.dtype, tensor.shape) != (there.dtype, there.shape):
        return False
    array: Any = in_memory(live.held[name]).array.reshape(-1).view("u1")
    pieces = enumerate(tensor.pieces())
    starts = ((number * PIECE_BYTES, piece) for number, piece in pieces)
    return all(array[at : at + len(piece)].tobytes() == piece for at, piece in starts)


def _as_torch(tensor: FileTensor, held: torch.Tensor) -> torch.Tensor:
    import torch

    made = torch.empty(tensor.shape, dtype=_torch_dtype(tensor.dtype))
    if made.numel():
        view: Any = in_memory(made).array
        view[...] = tensor.read()
    return made


def _torch_dtype(dtype: str) -> torch.dtype:
    import torch

    names = {"BF16": "bfloat16", "F8_E4M3": "float8_e4m3fn", "F8_E5M2": "float8_e5m2"}
    found: torch.dtype = getattr(torch, names.get(dtype) or DTYPES[dtype].name)
    return found
