"""Does an adapter fit a base: which stored tensor does each module mean, and what model results?

Three spellings of one tensor meet here. The trained model says `bert.encoder.layer.0…`, a bare
checkpoint `encoder.layer.0…`, one with a head `bert.encoder.layer.0…` beside `classifier.weight`.
The catalogue's prefix relates them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from adapterhub.adapter import Adapter
from adapterhub.base import Base
from adapterhub.catalogue import ModelClass
from adapterhub.errors import BaseMismatch, NotMergeable
from adapterhub.methods import BiasDelta, LowRank, Meaning, Replacement, method


@dataclass(frozen=True)
class Naming:
    """`target` is the class of the result where the merge changes it, else None."""

    base: Base
    target: ModelClass | None = None

    def stored(self, module: str) -> str:
        """Path of `module` in the base's files, whether or not they have it."""
        if self._holds(module):
            return module
        bare = self._bare(module)
        return f"{self.base.prefix}.{bare}" if self.base.prefix else bare

    def _holds(self, module: str) -> bool:
        return any(f"{module}.{name}" in self.base.tensors for name in ("weight", "bias"))

    def _bare(self, path: str) -> str:
        known = self.base.architecture.prefix if self.base.architecture else ""
        return path.removeprefix(f"{known}.") if known else path

    def written(self, tensor: str) -> str | None:
        """Name in the result of a tensor stored as `tensor`; None if the class lacks it."""
        if self.target is None:
            return tensor
        if self._is_backbone(tensor):
            bare = self._bare(tensor)
            tensor = f"{self.target.prefix}.{bare}" if self.target.prefix else bare
        return tensor if self.target.has_tensor(tensor) else None

    def _is_backbone(self, tensor: str) -> bool:
        if self.base.prefix:
            return tensor.startswith(f"{self.base.prefix}.")
        found = self.base.model_class
        return found is None or not found.is_head(tensor.rpartition(".")[0])

    def transposed(self, part: LowRank) -> bool:
        """Whether the weight is stored (in, out): embeddings, and GPT-2's Conv1D."""
        found = self.base.model_class
        kind = found.module(self.stored(part.module)) if found else None
        return part.layout == "embedding" or (kind is not None and kind.kind == "Conv1D")


def target_class(base: Base, adapters: Sequence[tuple[Adapter, Meaning]]) -> ModelClass | None:
    """The class that the adapters' heads ask for, or None if the base's own class stays.

    Raises NotMergeable where a head is brought and no single class is known to take it.
    """
    naming = Naming(base)
    wanted: dict[str, ModelClass] = {}
    for adapter, meaning in adapters:
        new = [
            f"{part.module}.{part.parameter}"
            for part in meaning
            if isinstance(part, Replacement)
            and f"{naming.stored(part.module)}.{part.parameter}" not in base.tensors
        ]
        if new:
            found = _class_with(base, adapter, new)
            wanted[found.name] = found
    if len(wanted) > 1:
        raise NotMergeable(
            f"the adapters make different models: {', '.join(sorted(wanted))}",
            remedy="merge them one at a time, each into a directory of its own",
        )
    target = next(iter(wanted.values()), None)
    same = target and base.model_class and target.name == base.model_class.name
    return None if same else target


def _class_with(base: Base, adapter: Adapter, new: Sequence[str]) -> ModelClass:
    known = base.architecture
    if known is None:
        raise BaseMismatch(
            f"the adapter brings tensors that the base lacks, and model_type "
            f"{base.model_type!r} is not known",
            details=new,
            remedy="check that this is the right base",
        )
    by_task = known.class_for_task(adapter.task) if adapter.task else None
    candidates = [by_task] if by_task else list(known.classes.values())
    fitting = [c for c in candidates if all(c.has_tensor(name) for name in new)]
    if len(fitting) == 1:
        return fitting[0]
    if not fitting:
        asked = by_task.name if by_task else f"any {known.model_type} class"
        raise BaseMismatch(
            f"the adapter brings tensors that neither the base nor {asked} has",
            details=new,
            remedy="check that this is the right base",
        )
    raise NotMergeable(
        f"the adapter's head fits several classes: {', '.join(c.name for c in fitting)}; "
        f"its task is {adapter.task or 'not stated'}",
        remedy="state task_type in adapter_config.json, for example TOKEN_CLS, and add it again",
    )


# --- mismatches -------------------------------------------------------------------------------


def check(base: Base, adapter: Adapter, *, name: str) -> None:
    """Raises BaseMismatch with every module that the base lacks or has in another shape."""
    naming = Naming(base)
    parts = method(adapter.method).implementation.parts(adapter)
    refuse(base, name, [found for part in parts if (found := mismatch(naming, part))])
    target_class(base, [(adapter, parts)])


def refuse(base: Base, name: str, mismatches: Sequence[str]) -> None:
    """One error for all that does not fit, so that nobody has to mend them one by one."""
    if mismatches:
        raise BaseMismatch(
            f"{name} does not fit the base {base.path}: {len(mismatches)} mismatches",
            details=mismatches,
            remedy="check that this is the base it was trained on: adapterhub show REF",
        )


def mismatch(naming: Naming, part: LowRank | BiasDelta | Replacement) -> str:
    """Why `part` cannot be applied to the base, as a sentence; "" if it can."""
    if isinstance(part, LowRank):
        return _weight_mismatch(naming, part)
    parameter = "bias" if isinstance(part, BiasDelta) else part.parameter
    stored = f"{naming.stored(part.module)}.{parameter}"
    there = naming.base.tensors.get(stored)
    if there is None:
        # A replacement that the base lacks may be a new head: `target_class` decides.
        return "" if isinstance(part, Replacement) else _missing(naming, part.module, parameter)
    found = naming.base.model_class
    resizable = isinstance(part, Replacement) and found and found.is_head(stored.rpartition(".")[0])
    if there.shape == part.value.shape or resizable:
        return ""
    got, expected = list(part.value.shape), list(there.shape)
    return f"{part.module}.{parameter}: the adapter has shape {got}, the base {expected}"


def _weight_mismatch(naming: Naming, part: LowRank) -> str:
    there = naming.base.tensors.get(f"{naming.stored(part.module)}.weight")
    if there is None:
        return _missing(naming, part.module, "weight")
    shape = delta_shape(naming, part)
    if shape == there.shape:
        return ""
    got = f"factors of shape {list(shape)}" if shape else "factors of an unknown layout"
    return f"{part.module}: the adapter has {got}, the base a weight of {list(there.shape)}"


def _missing(naming: Naming, module: str, parameter: str) -> str:
    tie = naming.base.tied.get(f"{naming.stored(module)}.{parameter}")
    why = f"; it is tied to {tie}" if tie else ""
    return f"{module}.{parameter}: the base has no such tensor{why}"


def delta_shape(naming: Naming, part: LowRank) -> tuple[int, ...]:
    """Shape, as stored, of the factors' product; () for a layout outside the formula."""
    out, rest = part.b.shape[0], part.a.shape[1:]
    if naming.transposed(part):
        return (*rest, out)
    if any(size != 1 for size in part.b.shape[2:]):
        return ()
    return (out, *rest)
