"""A model in memory, as a merge sees a base: names, shapes, and bytes on demand."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from adapterhub.base import Base
from adapterhub.catalogue import ModelClass
from adapterhub.errors import InvalidOption, NotSupported
from adapterhub.methods import LowRank
from adapterhub.registry.naming import Fusion, Naming
from adapterhub.tensorfile import DTYPES, ArrayTensor, Checkpoint, Tensor
from adapterhub.tensorfile.tensors import PIECE_BYTES

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

_TORCH = "float32 float16 bfloat16 float64 int8 uint8 int16 int32 int64 bool complex64"
_STORED = "F32 F16 BF16 F64 I8 U8 I16 I32 I64 BOOL C64"
_SPELLINGS: Mapping[str, str] = {
    **dict(zip(_TORCH.split(), _STORED.split(), strict=True)),
    "float8_e4m3fn": "F8_E4M3",
    "float8_e5m2": "F8_E5M2",
}


@dataclass(frozen=True, eq=False)
class LiveTensor:
    """A parameter or buffer as it was before anything was attached.

    `original` has those values; None where `live` has them still. Two names of one weight are
    equal.
    """

    dtype: str
    shape: tuple[int, ...]
    place: tuple[int, int]
    live: torch.Tensor
    original: Tensor | None = None

    def __eq__(self, other: object) -> bool:
        return isinstance(other, LiveTensor) and self.place == other.place

    def __hash__(self) -> int:
        return hash(self.place)

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * DTYPES[self.dtype].itemsize

    def read(self) -> np.ndarray[Any, np.dtype[Any]]:
        return in_memory(self.live).read() if self.original is None else self.original.read()

    def pieces(self, size: int = PIECE_BYTES) -> Iterator[memoryview]:
        yield from ArrayTensor(self.read()).pieces(size)


def in_memory(tensor: torch.Tensor) -> ArrayTensor:
    """Its values, without a copy where it lies on the CPU in C order; numpy has no bfloat16."""
    import torch

    data = tensor.detach().cpu().contiguous()
    dtype = DTYPES[_SPELLINGS[str(data.dtype).removeprefix("torch.")]]
    if str(data.dtype).startswith(("torch.bfloat16", "torch.float8")):
        data = data.view(torch.uint8 if data.element_size() == 1 else torch.int16)
    return ArrayTensor(data.numpy().view(dtype))


class Live:
    """The tensors of a model by all their names, `originals` instead of what is changed now."""

    def __init__(
        self, model: PreTrainedModel, originals: Mapping[str, Tensor] | None = None
    ) -> None:
        self.model = model
        self.held = {
            name: tensor
            for name, tensor in model.state_dict(keep_vars=True).items()
            if _is_tensor(tensor)
        }
        kept = originals or {}
        self.tensors = {
            name: _described(tensor, kept.get(self.shared.get(name, (name,))[0]))
            for name, tensor in self.held.items()
        }

    @cached_property
    def groups(self) -> tuple[tuple[str, ...], ...]:
        """Names that share one weight."""
        found: dict[tuple[int, int], list[str]] = defaultdict(list)
        for name, tensor in self.held.items():
            found[_place(tensor)].append(name)
        return tuple(tuple(names) for names in found.values() if len(names) > 1)

    @cached_property
    def shared(self) -> Mapping[str, tuple[str, ...]]:
        return {name: group for group in self.groups for name in group}

    @cached_property
    def naming(self) -> LiveNaming:
        return LiveNaming(self.base, None, self.model)

    @cached_property
    def base(self) -> LiveBase:
        name = type(self.model).__name__
        config = self.model.config.to_dict() | {"architectures": [name]}
        path = Path(f"the {name} in memory")
        tensors: Any = self.tensors
        return LiveBase(path, config, Checkpoint(path, (), tensors, {}), groups=self.groups)


def _is_tensor(value: Any) -> bool:
    import torch

    return isinstance(value, torch.Tensor)


def _described(tensor: torch.Tensor, original: Tensor | None) -> LiveTensor:
    import torch

    dtype, kind = str(tensor.dtype).removeprefix("torch."), type(tensor.data)
    spelled, shape = _SPELLINGS.get(dtype, dtype), tuple(tensor.shape)
    if kind is not torch.Tensor:  # quantised by torchao, spread over devices …
        spelled = kind.__name__
    if original is not None:
        shape = original.shape
    return LiveTensor(spelled, shape, _place(tensor), tensor, original)


def _place(tensor: torch.Tensor) -> tuple[int, int]:
    """What two names of one weight have in common; sets an empty or meta tensor apart by itself."""
    if tensor.device.type == "meta" or not tensor.numel():
        return id(tensor), -1
    return tensor.data_ptr(), tensor.numel()


@dataclass(frozen=True)
class LiveBase(Base):
    """`groups`: names that share one weight, which the model itself tells."""

    groups: tuple[tuple[str, ...], ...] = ()

    def ties_in(self, found: ModelClass) -> Mapping[str, str]:
        return {name: group[0] for group in self.groups for name in group[1:]}


@dataclass(frozen=True)
class LiveNaming(Naming):
    """What the catalogue says of modules, the model says itself, and better."""

    model: Any = None

    @cached_property
    def _stored(self) -> dict[str, str]:
        return {}

    def stored(self, module: str) -> str:
        if module not in self._stored:
            self._stored[module] = super().stored(module)
        return self._stored[module]

    def kind(self, module: str) -> str | None:
        from adapterhub._introspect.saving import kind_of

        found = self._module(self.stored(module))
        return None if found is None else kind_of(found)

    def fusion(self, part: LowRank) -> Fusion | None:
        name = self.parameter(part).rpartition(".")[0]
        own = getattr(self._module(name), "is_transposed", None)
        known = super().fusion(part)
        if isinstance(own, bool):
            return replace(known, transposed=own) if known else Fusion((), own)
        return known

    def _module(self, path: str) -> Any:
        try:
            return self.model.get_submodule(path)
        except AttributeError:
            return None


def bare(model: Any) -> PreTrainedModel:
    """The model itself, of what torch.compile makes of it.

    Raises InvalidOption for what is no model of transformers, NotSupported for PEFT's wrappers.
    """
    from transformers import PreTrainedModel

    inner = getattr(model, "_orig_mod", model)
    if isinstance(inner, PreTrainedModel):
        return inner
    name = type(inner).__name__[:80]
    if type(inner).__module__.partition(".")[0] == "peft":
        raise NotSupported(
            f"this {name} is peft's wrapper of a model, and not the model",
            remedy="attach to peft_model.unload(), or to the model before it was wrapped",
        )
    raise InvalidOption(
        f"{name} is no model of transformers",
        remedy="give a PreTrainedModel; of a wrapper, the model within: wrapper.module",
    )


def refuse_model(model: PreTrainedModel) -> None:
    """Raises NotSupported for models whose parameters are not all here, or wrapped by others."""
    name = type(model).__name__
    if any(hasattr(module, "base_layer") for module in model.modules()):
        raise NotSupported(
            f"this {name} has adapters of peft in its modules",
            remedy="attach to the model without them: peft_model.unload()",
        )
    away = sorted(n for n, p in model.named_parameters() if p.device.type == "meta")
    if away:
        raise NotSupported(
            f"{len(away)} parameters of this {name} are on the meta device, without values",
            details=away[:20],
            remedy="load the model in full, without offloading to disk",
        )
