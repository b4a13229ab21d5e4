"""Weights that share one place in memory, and tensors with a row for each token.

What PEFT trains of a tied pair is often not tied: factors and the copies of modules_to_save belong
to the module that was named. Some of it reaches every name of the weight all the same: what it
loads into the shared parameter itself, and trained tokens of the input embedding, unless the
other module has tokens of its own. (peft 0.21.2: `_set_trainable`,
`set_additional_trainable_modules`, `set_peft_model_state_dict`.)
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, TypeGuard

from adapterhub.adapter import Adapter
from adapterhub.base import Base, groups
from adapterhub.catalogue import ModelClass
from adapterhub.methods import Delta, Meaning, Part, Replacement, TokenRows
from adapterhub.registry.naming import Naming
from adapterhub.tensorfile import FileTensor, Tensor

Same = Callable[[Tensor, Tensor], bool]
# Methods that train the parameter itself, whatever shares it.
_OF_PARAMETERS = ("diff_pruning", "fishmask", "intrinsic_said")
Shared = Replacement | TokenRows | Delta


def seen(base: Base, found: ModelClass | None, adapters: Sequence[tuple[Adapter, Meaning]]) -> Base:
    """The base as a model of the class `found` holds it in memory: tied tensors under all names.

    Where an adapter brings embeddings or heads for another number of tokens, with that number.
    """
    view = base.in_memory(found)
    naming = Naming(view)
    rows = vocabulary(view, found)
    resized: dict[str, FileTensor] = {}
    for adapter, meaning in adapters:
        for part in (*meaning, *spread(naming, adapter, meaning, found, _in_one_place)):
            if not isinstance(part, Replacement):
                continue
            name = f"{naming.stored(part.module)}.{part.parameter}"
            if name in rows and fits_resized(view.tensors[name].shape, part.value.shape):
                resized[name] = replace(view.tensors[name], shape=part.value.shape)
    if not resized:
        return view
    return view.with_tensors({**view.tensors, **resized}, view.borrowed)


def fits_resized(stored: tuple[int, ...], shape: tuple[int, ...]) -> bool:
    """Whether only the number of rows differs."""
    return stored != shape and len(stored) == len(shape) > 0 and stored[1:] == shape[1:]


def vocabulary(base: Base, found: ModelClass | None) -> Mapping[str, int]:
    """Stored tensors that have a row, or an element, for each token → how many the base has.

    They are those that some class of the architecture could tie, and biases beside them.
    """
    pairs = _pairs(base, found)
    weights = [name for name in pairs.values() if name.endswith(".weight")]
    sizes = {base.tensors[name].shape[:1] for name in weights if name in base.tensors}
    if len(sizes) != 1 or not (size := sizes.pop()):
        return {}
    names = {*pairs, *pairs.values()}
    names |= {f"{name.removesuffix('.weight')}.bias" for name in names if name.endswith(".weight")}
    return {
        name: size[0]
        for name in sorted(names)
        if name in base.tensors and base.tensors[name].shape[:1] == size
    }


def _pairs(base: Base, found: ModelClass | None) -> Mapping[str, str]:
    """What heads could share with embeddings, or with each other: biases."""
    classes = [found] if found else []
    classes += list(base.architecture.classes.values()) if base.architecture else []
    return {
        base.stored_as(name, known): base.stored_as(source, known)
        for known in classes
        for name, source in known.tied.items()
    }


# --- what reaches all names -------------------------------------------------------------------


def spread(
    naming: Naming,
    adapter: Adapter,
    meaning: Meaning,
    found: ModelClass | None,
    same: Same,
) -> list[Part]:
    """What `meaning` says of one tensor and PEFT does to those that share its weight as well.

    `same` tells whether two tensors of the base have the same values.
    """
    base = naming.base
    sharing = [g for g in groups(base.ties_in(found) if found else {}) if _present(base, g)]
    if not sharing:
        return []
    own = _own(naming, meaning)
    return [
        _renamed(part, other)
        for part in meaning
        if _may_spread(part, adapter)
        for other in _others(naming, adapter, part, sharing, same)
        if (type(part), other) not in own
    ]


def _may_spread(part: Part, adapter: Adapter) -> TypeGuard[Shared]:
    if isinstance(part, Delta):
        return adapter.method in _OF_PARAMETERS
    return isinstance(part, Replacement | TokenRows)


def _present(base: Base, group: Sequence[str]) -> bool:
    return sum(name in base.tensors for name in group) > 1


def _own(naming: Naming, meaning: Meaning) -> set[tuple[type, str]]:
    return {(type(part), _name(naming, part)) for part in meaning if isinstance(part, Shared)}


def _name(naming: Naming, part: Shared) -> str:
    parameter = "weight" if isinstance(part, TokenRows) else part.parameter
    return f"{naming.stored(part.module)}.{parameter}"


def _others(
    naming: Naming,
    adapter: Adapter,
    part: Shared,
    sharing: Sequence[Sequence[str]],
    same: Same,
) -> Iterator[str]:
    name, tensors = _name(naming, part), naming.base.tensors
    group = next((group for group in sharing if name in group), ())
    if not group or name not in tensors:
        return
    if isinstance(part, TokenRows):
        if name == group[0]:
            yield from (other for other in group[1:] if other in tensors)
    elif isinstance(part, Delta) or not is_saved_copy(adapter, part.module):
        for other in group:
            if other != name and other in tensors and same(tensors[name], tensors[other]):
                yield other


def is_saved_copy(adapter: Adapter, module: str) -> bool:
    """Whether PEFT trains a copy of the module, apart from what shares its weight."""
    named = adapter.config.get("modules_to_save")
    names = named if isinstance(named, list) else []
    return any(isinstance(name, str) and module.endswith(name) for name in names)


def _renamed(part: Shared, other: str) -> Part:
    module, _, parameter = other.rpartition(".")
    if not isinstance(part, Replacement):
        return replace(part, module=module)
    return replace(part, module=module, parameter=parameter)


def _in_one_place(one: Any, other: Any) -> bool:
    """As `same`, but reads nothing."""
    return (one.path, one.offset) == (other.path, other.offset)
