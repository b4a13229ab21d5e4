"""A frozen adapter: method, config, and modules → roles → lazy tensors.

Every format is read into this form and written from it; every method gives it a meaning. Module
paths are those of the model that was trained, as `named_modules()` spells them there, without the
wrapper's prefix: `bert.encoder.layer.0.attention.self.query`.

A role says what a tensor is for its module: `lora_A`, `lora_B`, … (each method documents its own)
or `replace:<parameter>`, a whole tensor that takes the place of the base's (`replace:weight` of
`classifier` for a head that was saved, `replace:bias` of a Linear whose bias was trained).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from adapterhub.tensorfile import Tensor

REPLACE = "replace:"


@dataclass(frozen=True)
class Problem:
    """One finding about an adapter. A `fatal` one keeps it out of the registry."""

    code: str
    message: str
    remedy: str = ""
    fatal: bool = False

    def sentence(self) -> str:
        return f"{self.message} ({self.remedy})" if self.remedy else self.message


@dataclass(frozen=True)
class BaseClaim:
    """What an adapter says about its base; nothing here has been checked."""

    name: str | None = None
    revision: str | None = None
    quantization: str | None = None


@dataclass(frozen=True)
class SourceFile:
    """A file that belongs to an adapter.

    `name` is where it belongs inside the adapter's directory, `path` where it lies now. A pickle
    that was read with consent stands here too, and is stored as what `safe` says.
    """

    name: str
    path: Path
    kind: str  # "weights", "config", "tokenizer"
    safe: SafeForm | None = None


@dataclass(frozen=True)
class SafeForm:
    """The safetensors file that takes the place of a pickle: its name, and the same tensors."""

    name: str
    tensors: Mapping[str, Tensor]


@dataclass(frozen=True)
class Adapter:
    """`config` holds the method's fields under PEFT's names, and the unknown ones as they came."""

    method: str
    format: str
    config: Mapping[str, Any]
    modules: Mapping[str, Mapping[str, Tensor]]
    base: BaseClaim = BaseClaim()
    task: str | None = None
    labels: tuple[str, ...] = ()

    def tensors(self) -> Iterator[tuple[str, str, Tensor]]:
        """`(module, role, tensor)` of every tensor, in the order of the modules."""
        for module, roles in self.modules.items():
            for role, tensor in roles.items():
                yield module, role, tensor

    @property
    def parameters(self) -> int:
        """Number of elements over all tensors."""
        return sum(_elements(tensor.shape) for _, _, tensor in self.tensors())

    @property
    def dtypes(self) -> tuple[str, ...]:
        """The dtypes that occur, sorted, spelled as in safetensors."""
        return tuple(sorted({tensor.dtype for _, _, tensor in self.tensors()}))


@dataclass(frozen=True)
class Outline:
    """What shows of an adapter whose format is recognised and not read, as far as it shows.

    `ranks`: module → rank, modules spelled as in the file. `targets`: modules, so too.
    `parameters`: number of elements, where all shapes show. `declared`: the rank in the config,
    for formats that have another place for it than PEFT.
    """

    ranks: Mapping[str, int] = field(default_factory=dict)
    targets: tuple[str, ...] = ()
    alpha: float | None = None
    base: BaseClaim = BaseClaim()
    parameters: int | None = None
    declared: int | None = None


@dataclass(frozen=True)
class Reading:
    """What a format's reader saw, damage included.

    `adapter` is None where the files do not make one up; `problems` then say why, and `outline`
    tells what shows all the same. `config` is the parsed config even when there are no weights;
    `card` holds what the model card's front matter said (licence, tags, language …) under the names
    of the registry's card fields. `tensors` are those of the weights, as the files name them.
    """

    path: Path
    format: str
    method: str | None
    config: Mapping[str, Any]
    adapter: Adapter | None
    files: tuple[SourceFile, ...]
    problems: tuple[Problem, ...]
    card: Mapping[str, Any] = field(default_factory=dict)
    tensors: Mapping[str, Tensor] = field(default_factory=dict)
    outline: Outline | None = None

    @property
    def fatal(self) -> tuple[Problem, ...]:
        return tuple(problem for problem in self.problems if problem.fatal)


def _elements(shape: tuple[int, ...]) -> int:
    count = 1
    for size in shape:
        count *= size
    return count
