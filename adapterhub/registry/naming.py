"""Which stored tensor does a module of the trained model mean, and what will it be called?

Three spellings of one tensor meet here. The trained model says `bert.encoder.layer.0…`, a bare
checkpoint `encoder.layer.0…`, one with a head `bert.encoder.layer.0…` beside `classifier.weight`.
The catalogue's prefixes relate them, and its `live` names where memory and files differ (ViT).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property

from adapterhub.base import Base, respelled
from adapterhub.catalogue import Fused, ModelClass
from adapterhub.methods import LowRank, Replacement

# Constants that older checkpoints store: positions, causal masks, rotary frequencies.
LEGACY_BUFFERS = re.compile(
    r"(^|\.)(position_ids|token_type_ids|masked_bias|inv_freq|(attn|attention)\.bias)$"
)
# `experts.12.w1.weight` → what stands before its last number, the number, what stands behind.
_LAST_NUMBER = re.compile(r"(.*\.)(0|[1-9][0-9]{0,5})(\.[^0-9].*)")
WEIGHTS = ("weight", "in_proj_weight")  # the second one is that of a MultiheadAttention


@dataclass(frozen=True)
class Fusion:
    """How a base's files hold a 3-D parameter of the model in memory, if not as itself.

    `parts`: names of stored tensors, with `*` for the expert's number; one expert's, with their
    rows one below the other, are its matrix. `transposed`: whether the matrix is then stored so.
    """

    parts: tuple[str, ...]
    transposed: bool


@dataclass(frozen=True)
class Home:
    """A 3-D tensor that holds, among others, the `number`th of `of` parts of one expert."""

    stored: str
    expert: int
    number: int
    of: int
    transposed: bool


@dataclass(frozen=True)
class Naming:
    """`target` is the class of the result where the merge changes it, else None."""

    base: Base
    target: ModelClass | None = None

    @property
    def result(self) -> ModelClass | None:
        """The class that loads the result; None if nobody knows it."""
        return self.target or self.base.model_class

    def stored(self, module: str) -> str:
        """Path of `module` in the base's files, whether or not they have it."""
        found = next((path for path in self._spellings(module) if self._holds(path)), None)
        return found or self._usual(module)

    def _holds(self, module: str) -> bool:
        return any(f"{module}.{name}" in self.base.tensors for name in (*WEIGHTS, "bias"))

    def parameter(self, part: LowRank) -> str:
        """Stored name of the tensor that `part` changes, whether or not the files have it."""
        if part.parameter is not None:
            names = [f"{path}.{part.parameter}" for path in self._spellings(part.module)]
            found = next((name for name in names if name in self.base.tensors), None)
            return found or f"{self._usual(part.module)}.{part.parameter}"
        names = [f"{self.stored(part.module)}.{weight}" for weight in WEIGHTS]
        return next((name for name in names if name in self.base.tensors), names[0])

    def fusion(self, part: LowRank) -> Fusion | None:
        """What the catalogue knows of a 3-D parameter, with stored names."""
        for known in self._classes():
            found = known.fused_in(f"{part.module}.{part.parameter}")
            if found is not None:
                fused, names = found
                return Fusion(tuple(self._restored(n, known) for n in names), fused.transposed)
        return None

    def _restored(self, name: str, known: ModelClass) -> str:
        """The stored spelling of a backbone tensor that `known` has as `name`."""
        backbone = not known.prefix or name.startswith(f"{known.prefix}.")
        return respelled(name, known.prefix, self.base.prefix) if backbone else name

    def experts(self, pattern: str) -> Mapping[int, str]:
        """The stored tensors that `pattern` means, by the number for which its `*` stands."""
        return self._numbered.get(pattern, {})

    @cached_property
    def _numbered(self) -> Mapping[str, Mapping[int, str]]:
        found: dict[str, dict[int, str]] = {}
        for name in self.base.tensors:
            if numbered := _LAST_NUMBER.fullmatch(name):
                start, number, end = numbered.groups()
                found.setdefault(f"{start}*{end}", {})[int(number)] = name
        return found

    def fused_home(self, module: str) -> Home | None:
        """Where files that fuse the experts hold the weight of `module`, which is one expert's."""
        for known in self._classes():
            for name, fused in known.fused.items():
                home = self._home(known, name, fused, f"{module}.weight")
                if home and home.stored in self.base.tensors:
                    return home
        return None

    def _home(self, known: ModelClass, name: str, fused: Fused, weight: str) -> Home | None:
        for number, pattern in enumerate(fused.parts):
            found = re.fullmatch(re.escape(pattern).replace(r"\*", r"(\d{1,6})"), weight)
            if found:
                *layers, expert = found.groups()
                stored = self._restored(_filled(name, layers), known)
                return Home(stored, int(expert), number, len(fused.parts), fused.transposed)
        return None

    def _spellings(self, module: str) -> Iterator[str]:
        """What `module` of the trained model may be called in the files."""
        yield module
        module = module.replace(".base_layer.", ".")  # inside a wrapped MultiheadAttention
        yield module
        for trained in self._classes():
            for path in (trained.stored_path(module), module):
                yield path
                if not trained.prefix or path.startswith(f"{trained.prefix}."):
                    yield respelled(path, trained.prefix, self.base.prefix)

    def _classes(self) -> Iterator[ModelClass]:
        if self.result is not None:
            yield self.result
        if self.base.architecture is not None:
            yield from self.base.architecture.classes.values()

    def _usual(self, module: str) -> str:
        """The spelling for a module that the files lack."""
        for trained in self._classes():
            path = trained.stored_path(module)
            if trained.prefix and path.startswith(f"{trained.prefix}."):
                return respelled(path, trained.prefix, self.base.prefix)
        return module

    def new(self, part: Replacement) -> str:
        """Name in the result of a tensor that the base lacks."""
        module = self.result.stored_path(part.module) if self.result else part.module
        return f"{module}.{part.parameter}"

    def written(self, tensor: str) -> str | None:
        """Name in the result of a tensor stored as `tensor`; None if it is left out.

        Left out is what the class of the result is known to lack: the base's own head, a pooler.
        A backbone tensor that the catalogue does not know stays, since some configuration of the
        class may need it: too many tensors make transformers speak up, too few make it guess.
        """
        if self.target is None:
            return tensor
        if tensor in self.base.borrowed and self.target.is_head(tensor.rpartition(".")[0]):
            return tensor
        if not self.base.is_backbone(tensor):
            return tensor if self.target.has_tensor(tensor) else None
        name = respelled(tensor, self.base.prefix, self.target.prefix)
        return None if self._is_known(tensor) and not self.target.has_tensor(name) else name

    def _is_known(self, tensor: str) -> bool:
        """Whether a backbone tensor is known, be it as a buffer that models no longer save."""
        if self.base.architecture is None or LEGACY_BUFFERS.search(tensor):
            return True
        bare = self.base.architecture.class_named(self.base.architecture.base_class)
        return bare is None or bare.has_tensor(respelled(tensor, self.base.prefix, ""))

    @cached_property
    def ties(self) -> Mapping[str, str]:
        """Pairs that share one weight in the result; names of the result's class."""
        return self.result.tied_in(self.base.config) if self.result else {}

    def transposed(self, part: LowRank) -> bool:
        """Whether the weight is stored (in, out): embeddings, and GPT-2's Conv1D.

        PEFT takes a 2-D parameter that is trained as such for (out, in), whatever its module is.
        """
        if part.parameter is not None:
            return False
        return part.layout == "embedding" or self.kind(part.module) == "Conv1D"

    def kind(self, module: str) -> str | None:
        """What the catalogue says of `module`: Linear, Conv1D …; None if it does not know it."""
        name = self.base.in_class(f"{self.stored(module)}.weight")
        found = self.base.model_class
        known = found.module(name.rpartition(".")[0]) if found else None
        return known.kind if known else None


def _filled(pattern: str, numbers: Iterable[str]) -> str:
    """`pattern` with these numbers in the places of its `*`."""
    rest = iter(numbers)
    return re.sub(r"\*", lambda _: next(rest), pattern)
