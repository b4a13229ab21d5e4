"""Two checkpoints of one structure, tensor by tensor: a base, and what was fine-tuned from it.

Both are read by blocks of rows, so that nothing is held but what a caller keeps.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from adapterhub.base import Base, respelled
from adapterhub.catalogue import ModelClass
from adapterhub.composing.factored import Matrix
from adapterhub.errors import BaseMismatch, InvalidBase, NotSupported
from adapterhub.registry.naming import LEGACY_BUFFERS, Naming
from adapterhub.registry.tied import fits_resized, vocabulary
from adapterhub.tensorfile import FileTensor, shown

FLOATS = ("F32", "F16", "BF16")
_BLOCK_BYTES = 8 << 20
_NUMBER = re.compile(r"(?<![^.])\d{1,6}(?![^.])")  # a whole part of a path


@dataclass(frozen=True)
class Pair:
    """A tensor of the fine-tuned checkpoint: `new`, and what it was, if the base has it so.

    `module`: as a model of its class has it in memory. `kind`: what the catalogue says of it.
    `head`: it is none of the bare model's. `expert`: one of several in one parameter in memory.
    `shared`: the files have it under another name, as another pair.
    """

    module: str
    parameter: str
    kind: str | None
    head: bool
    expert: bool
    shared: bool
    new: FileTensor
    old: FileTensor | None

    @property
    def name(self) -> str:
        return f"{self.module}.{self.parameter}" if self.module else self.parameter

    @property
    def transposed(self) -> bool:
        """Whether it is stored (in, out)."""
        return self.parameter == "weight" and self.kind == "Conv1D"

    @property
    def shape(self) -> tuple[int, ...]:
        """(out, in, *kernel), as the formula has it."""
        return self.new.shape[::-1] if self.transposed else self.new.shape

    @property
    def nbytes(self) -> int:
        """Of both tensors."""
        return self.new.nbytes + (self.old.nbytes if self.old else 0)

    def delta(self) -> Matrix | None:
        """new − old in fp32, as it is stored; None where they have the same values.

        Raises NotSupported for other dtypes than FLOATS, InvalidBase for NaN and infinity, also
        where two finite values are so far apart.
        """
        found: Matrix | None = None
        for rows, old, new in self._unequal():
            if self.new.dtype not in FLOATS:
                raise NotSupported(
                    f"{self.name} is {self.new.dtype}, whose difference is no weight's",
                    remedy=f"give checkpoints in {', '.join(FLOATS)}",
                )
            change = _single(new, old.size)
            with np.errstate(over="ignore", invalid="ignore"):
                change -= _single(old, old.size)
            self._refuse_infinite(change)
            if found is None and change.any():
                found = np.zeros(self.new.shape or (1,), np.float32)
            if found is not None:
                found[rows] = change.reshape(found[rows].shape)
        return None if found is None else found.reshape(self.new.shape)

    def differs(self) -> bool:
        """Whether any value does; what the base lacks differs."""
        if self.old is None:
            return True
        alike = self.old.dtype == self.new.dtype
        return any(alike or not np.array_equal(old, new) for _, old, new in self._unequal())

    def check_finite(self) -> None:
        """Raises InvalidBase where the fine-tuned values are not."""
        if self.new.dtype in FLOATS:
            for rows in _blocks(self.new):
                part = _rows(self.new, rows)
                self._refuse_infinite(_single(part.read(), math.prod(part.shape)))

    def _refuse_infinite(self, values: Matrix) -> None:
        if not np.isfinite(values).all():
            raise InvalidBase(
                f"{self.name} holds values that are NaN or infinite, or are so far apart",
                remedy="check both checkpoints: adapterhub merge would refuse them too",
            )

    def _unequal(self) -> Iterator[tuple[slice, Matrix, Matrix]]:
        """The blocks of rows whose bytes are not the same."""
        if self.old is None:
            return
        if {self.old.dtype, self.new.dtype} - set(FLOATS) and self.old.dtype != self.new.dtype:
            raise NotSupported(
                f"{self.name} is {self.old.dtype} in the base and {self.new.dtype} fine-tuned",
                remedy=f"give checkpoints in {', '.join(FLOATS)}",
            )
        for rows in _blocks(self.new):
            old, new = _rows(self.old, rows).read(), _rows(self.new, rows).read()
            if old.dtype != new.dtype or not _same_bytes(old, new):
                yield rows, old, new


def _blocks(tensor: FileTensor) -> Iterator[slice]:
    height = tensor.shape[0] if tensor.shape else 1
    step = max(1, _BLOCK_BYTES * height // max(1, tensor.nbytes))
    for start in range(0, height, step):
        yield slice(start, min(height, start + step))


def _rows(tensor: FileTensor, rows: slice) -> FileTensor:
    if not tensor.shape:
        return tensor
    pitch = tensor.nbytes // tensor.shape[0]
    count = rows.stop - rows.start
    shape = (count, *tensor.shape[1:])
    return replace(
        tensor, shape=shape, offset=tensor.offset + rows.start * pitch, nbytes=count * pitch
    )


def _same_bytes(old: Matrix, new: Matrix) -> bool:
    return bool(np.array_equal(old.reshape(-1).view(np.uint8), new.reshape(-1).view(np.uint8)))


def _single(values: Matrix, size: int) -> Matrix:
    """fp32, flat, a fresh array."""
    if values.dtype.name == "bfloat16":
        wide = values.reshape(-1).view(np.uint16).astype(np.uint32)
        wide <<= np.uint32(16)
        return wide.view(np.float32)
    return values.reshape(size).astype(np.float32)


# --- which tensor was which -------------------------------------------------------------------


@dataclass(frozen=True)
class Checkpoints:
    """`base` and `tuned`, with the tensors that models in memory share under all their names."""

    base: Base
    tuned: Base

    @cached_property
    def pairs(self) -> tuple[Pair, ...]:
        """In the order of the files. Raises BaseMismatch, with all that does not fit."""
        naming, wrong, found = Naming(self.base), self._kinds(), []
        resizable = vocabulary(self.tuned, self.known)
        for stored in self._ordered():
            module, parameter = self._in_memory(stored)
            new = self.tuned.tensors[stored]
            old = self.base.tensors.get(_name(naming.stored(module), parameter))
            pair = self._pair(stored, module, parameter, new, old)
            if old is None and not pair.head and self._base_has(naming, module, parameter):
                wrong.append(f"{pair.name}: the base has no such tensor")
            if old is not None and old.shape != new.shape:
                fits = fits_resized(old.shape, new.shape)
                if not (fits and (pair.head or stored in resizable)):
                    wrong.append(f"{pair.name}: {list(old.shape)} in the base, {list(new.shape)}")
                pair = replace(pair, old=None)
            found.append(pair)
        wrong += self._missing(naming, found)
        if wrong:
            raise BaseMismatch(
                f"{self.tuned.path} is not fine-tuned from the base {self.base.path}: their "
                "structures differ",
                details=wrong,
                remedy="give the base that it was fine-tuned from",
            )
        return tuple(found)

    def check_unchanged(self) -> None:
        """Raises InvalidBase where a file of either is not the one that was opened."""
        for each in (self.base, self.tuned):
            each.check_unchanged()

    @property
    def known(self) -> ModelClass | None:
        """The class of the fine-tuned model."""
        return self.tuned.model_class

    @cached_property
    def left_out(self) -> tuple[str, ...]:
        """Tensors of the base that a model of the fine-tuned class has no place for."""
        naming = Naming(self.base)
        used = {_name(naming.stored(pair.module), pair.parameter) for pair in self.pairs}
        return tuple(
            name
            for name in sorted(self.base.tensors)
            if name not in used and not LEGACY_BUFFERS.search(name)
        )

    def _kinds(self) -> list[str]:
        one, other = self.base.model_type, self.tuned.model_type
        return [] if one == other else [f"the model types: {one} and {other}"]

    def _ordered(self) -> list[str]:
        places = {path: n for n, path in enumerate(self.tuned.checkpoint.files)}
        tensors = self.tuned.tensors

        def place(name: str) -> tuple[int, int, str]:
            return places.get(tensors[name].path, 0), tensors[name].offset, name

        return sorted((name for name in tensors if not LEGACY_BUFFERS.search(name)), key=place)

    def _in_memory(self, stored: str) -> tuple[str, str]:
        """Module and parameter, as a model of the fine-tuned class calls them."""
        module, _, parameter = self.tuned.in_class(stored).rpartition(".")
        numbers = _NUMBER.findall(module)
        starred = _NUMBER.sub("*", module)
        if starred in self._live:
            rest = iter(numbers)
            module = re.sub(r"\*", lambda _: next(rest), self._live[starred])
        return module, parameter

    @cached_property
    def _live(self) -> Mapping[str, str]:
        """Pattern of a path in the files → of the one in memory."""
        return {saved: live for live, saved in self.known.live.items()} if self.known else {}

    def _pair(
        self, stored: str, module: str, parameter: str, new: FileTensor, old: FileTensor | None
    ) -> Pair:
        saved = self.tuned.in_class(stored)
        path = saved.rpartition(".")[0]
        known = self.known.module(path) if self.known else None
        return Pair(
            module=module,
            parameter=parameter,
            kind=known.kind if known else None,
            head=bool(self.known and self.known.is_head(path)),
            expert=self._is_expert(saved),
            shared=stored in self.tuned.borrowed,
            new=new,
            old=old,
        )

    def _is_expert(self, saved: str) -> bool:
        starred = _NUMBER.sub("*", saved)
        fused = self.known.fused if self.known else {}
        return starred in fused or any(starred in found.parts for found in fused.values())

    def _base_has(self, naming: Naming, module: str, parameter: str) -> bool:
        """Whether a checkpoint of the base's class would hold this tensor."""
        found = self.base.model_class
        return found is None or found.has_tensor(
            self.base.in_class(_name(naming.stored(module), parameter))
        )

    def _missing(self, naming: Naming, pairs: list[Pair]) -> Iterator[str]:
        """What the base has, and a checkpoint of the fine-tuned class should have too."""
        used = {_name(naming.stored(pair.module), pair.parameter) for pair in pairs}
        for name in sorted(self.base.tensors.keys() - used):
            if LEGACY_BUFFERS.search(name):
                continue
            if self.known is None or self._tuned_has(name):
                yield f"{shown(name)}: only the base has it"

    def _tuned_has(self, name: str) -> bool:
        known = self.known
        if known is None or not self.base.is_backbone(name):
            return False
        return known.has_tensor(respelled(name, self.base.prefix, known.prefix))


def _name(module: str, parameter: str) -> str:
    return f"{module}.{parameter}" if module else parameter


def checkpoints(base: Base, tuned: Base) -> Checkpoints:
    """The two, with the tensors that each shares under all their names."""
    return Checkpoints(base.in_memory(base.model_class), tuned.in_memory(tuned.model_class))
