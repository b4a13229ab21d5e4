"""Does an adapter fit a base, and what model results?"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from adapterhub.adapter import Adapter
from adapterhub.base import Base
from adapterhub.catalogue import ModelClass
from adapterhub.errors import BaseMismatch, NotMergeable
from adapterhub.methods import (
    BiasDelta,
    Delta,
    LowRank,
    Meaning,
    Part,
    Replacement,
    Shaped,
    TokenRows,
    Transform,
    method,
)
from adapterhub.registry import matching, structures
from adapterhub.registry.naming import Naming
from adapterhub.registry.places import delta_shape, missing, sites
from adapterhub.registry.shaped import settled
from adapterhub.registry.tied import seen
from adapterhub.registry.whole import spot

__all__ = [
    "LABELLED",
    "Naming",
    "check",
    "delta_shape",
    "mismatch",
    "mismatches",
    "refuse",
    "target_class",
    "wrong_ranks",
]

LABELLED = ("SEQ_CLS", "TOKEN_CLS", "IMAGE_CLS")  # tasks whose heads have a row for each label

_ANOTHER = "check that this is the base it was trained on: adapterhub show REF"
_PACKED = "this base is quantised: give the full-precision one, from which it was made"


# --- the class of the result ------------------------------------------------------------------


def target_class(base: Base, adapters: Sequence[tuple[Adapter, Meaning]]) -> ModelClass | None:
    """The class that the adapters' heads ask for, or None if the base's own class stays.

    Raises BaseMismatch where no class takes a head, NotMergeable where no single one does.
    """
    base = seen(base, base.model_class, adapters)
    wanted = {c.name: c for a, parts in adapters if (c := _class_asked_for(base, a, parts))}
    if len(wanted) > 1:
        raise NotMergeable(
            f"the adapters make different models: {', '.join(sorted(wanted))}",
            remedy="merge them one at a time, each into a directory of its own",
        )
    target = next(iter(wanted.values()), None)
    own = base.model_class
    same = target and own and target.name == own.name and base.prefix == target.prefix
    return None if same else target


def _class_asked_for(base: Base, adapter: Adapter, parts: Meaning) -> ModelClass | None:
    """The class that has the heads which this adapter brings; None if it brings none."""
    new = _new(base, parts)
    if not new:
        return _class_of_heads(base, adapter, parts)
    fitting = _fitting(base, adapter, new)
    if not fitting:
        refuse(base, "the adapter", _homeless(base, adapter, parts))
    if len(fitting) > 1:
        raise NotMergeable(
            f"the adapter's head fits several classes: {', '.join(c.name for c in fitting)}; "
            f"its task is {adapter.task or 'not stated'}",
            remedy="state task_type in adapter_config.json, for example TOKEN_CLS, and add it "
            "again",
        )
    return fitting[0]


def _class_of_heads(base: Base, adapter: Adapter, parts: Meaning) -> ModelClass | None:
    """A head of the same name may serve another task: `classifier` of tokens or of sequences."""
    found = _class_of_task(base, adapter)
    if found is None or found == base.model_class:
        return None
    heads = [
        part
        for part in parts
        if isinstance(part, Replacement) and found.is_head(found.stored_path(part.module))
    ]
    return found if heads and all(_has(found, part) for part in heads) else None


def _new(base: Base, parts: Meaning) -> list[Replacement]:
    """The replacements of tensors that the base lacks."""
    naming = Naming(base)
    return [
        part
        for part in parts
        if isinstance(part, Replacement)
        and f"{naming.stored(part.module)}.{part.parameter}" not in base.tensors
    ]


def _class_of_task(base: Base, adapter: Adapter) -> ModelClass | None:
    known = base.architecture
    return known.class_for_task(adapter.task) if known and adapter.task else None


def _fitting(base: Base, adapter: Adapter, new: Sequence[Replacement]) -> list[ModelClass]:
    if base.architecture is None:
        return []
    by_task = _class_of_task(base, adapter)
    candidates = [by_task] if by_task else list(base.architecture.classes.values())
    return [found for found in candidates if all(_has(found, part) for part in new)]


def _has(found: ModelClass, part: Replacement) -> bool:
    return found.has_tensor(f"{found.stored_path(part.module)}.{part.parameter}")


# --- mismatches -------------------------------------------------------------------------------


def check(base: Base, adapter: Adapter, *, name: str) -> None:
    """Raises BaseMismatch with every module that the base lacks or has in another shape."""
    row = method(adapter.method)
    parts = row.implementation.parts(adapter)
    refuse(base, name, mismatches(base, adapter, parts))
    if "merge" not in row.does:
        refuse(base, name, _unlike(base, adapter))
    target_class(base, [(adapter, parts)])


def _unlike(base: Base, adapter: Adapter) -> list[str]:
    """For methods without parts: what the sides of their tensors tell against the base."""
    told = matching.seen(method(adapter.method).implementation.signature(adapter))
    if told.empty:
        return []
    found = matching.compare(told, structures.of_base(base))
    return [found] if isinstance(found, str) else []


def refuse(base: Base, name: str, found: Sequence[str]) -> None:
    """One error for all that does not fit, so that nobody has to mend them one by one."""
    if found:
        count = f"{len(found)} mismatch{'es' if len(found) > 1 else ''}"
        raise BaseMismatch(
            f"{name} does not fit the base {base.path}: {count}",
            details=found,
            remedy=_PACKED if base.config.get("quantization_config") else _ANOTHER,
        )


def mismatches(base: Base, adapter: Adapter, parts: Meaning) -> list[str]:
    """Why `adapter` cannot be applied to the base, a sentence for each module."""
    base = seen(base, base.model_class, [(adapter, parts)])
    naming = Naming(base)
    said = [(part, mismatch(naming, part, adapter.config)) for part in parts]
    found = [sentence for _, sentence in said if sentence]
    rest = tuple(part for part, sentence in said if not sentence)
    return [*found, *wrong_ranks(naming, adapter, parts), *_homeless(base, adapter, rest)]


def _homeless(base: Base, adapter: Adapter, parts: Meaning) -> list[str]:
    """New tensors that no class of this architecture would load."""
    new = _new(base, parts)
    if not new or _fitting(base, adapter, new):
        return []
    known, by_task = base.architecture, _class_of_task(base, adapter)
    if known is None:
        why = f"the base has no such tensor, and its model_type {base.model_type!r} is not known"
        return [f"{part.module}.{part.parameter}: {why}" for part in new]
    asked = by_task.name if by_task else f"any {known.model_type} class"
    lacking = [part for part in new if by_task is None or not _has(by_task, part)]
    return [f"{p.module}.{p.parameter}: neither the base nor {asked} has it" for p in lacking]


def mismatch(naming: Naming, part: Part, config: Mapping[str, Any] | None = None) -> str:
    """Why `part` cannot be applied to the base, as a sentence; "" if it can.

    `config` is the adapter's: factors for experts mean another thing before peft 0.19.
    """
    if isinstance(part, Shaped):
        return _shaped_mismatch(naming, part, config)
    if isinstance(part, LowRank):
        return _weight_mismatch(naming, part, config or {})
    if isinstance(part, TokenRows):
        return _rows_mismatch(naming, part)
    if isinstance(part, Delta | Transform):
        return _whole_mismatch(naming, part)
    parameter = "bias" if isinstance(part, BiasDelta) else part.parameter
    stored = f"{naming.stored(part.module)}.{parameter}"
    there = naming.base.tensors.get(stored)
    if there is None:
        # A replacement that the base lacks may be a new head: `target_class` decides. A bias beside
        # a weight that is there is none: a model of this config would pass over it.
        bare = parameter == "bias" and f"{naming.stored(part.module)}.weight" in naming.base.tensors
        may_be_new = isinstance(part, Replacement) and not bare
        return "" if may_be_new else missing(naming, part.module, parameter)
    resizable = isinstance(part, Replacement) and _resizable(naming.base, stored)
    if there.shape == part.value.shape or (
        resizable and there.shape[1:] == part.value.shape[1:] and part.value.shape
    ):
        return ""
    got, expected = list(part.value.shape), list(there.shape)
    return f"{part.module}.{parameter}: the adapter has shape {got}, the base {expected}"


def _rows_mismatch(naming: Naming, part: TokenRows) -> str:
    there = naming.base.tensors.get(f"{naming.stored(part.module)}.weight")
    if there is None:
        return missing(naming, part.module, "weight")
    count, shape = len(part.indices), part.value.shape
    if len(there.shape) != 2 or shape != (count, *there.shape[1:]):
        got = f"{count} rows of shape {list(shape[1:])}" if shape[:1] == (count,) else list(shape)
        return f"{part.module}: the adapter has {got}, the base a weight of {list(there.shape)}"
    outside = [index for index in part.indices if not 0 <= index < there.shape[0]]
    if outside:
        return (
            f"{part.module}: the adapter has a row for token {outside[0]}, the base "
            f"{there.shape[0]} rows"
        )
    return ""


def _resizable(base: Base, stored: str) -> bool:
    """A head has as many rows as there are labels, and an adapter may bring other labels."""
    found = base.model_class
    return found is not None and found.task in LABELLED and found.is_head(stored.rpartition(".")[0])


def _weight_mismatch(naming: Naming, part: LowRank, config: Mapping[str, Any]) -> str:
    try:
        sites(naming, part, config)
    except BaseMismatch as error:
        return error.message
    except NotMergeable:
        pass  # it fits; why it cannot be merged, a merge says
    return ""


def _shaped_mismatch(naming: Naming, part: Shaped, config: Mapping[str, Any] | None) -> str:
    try:
        (found,) = settled(naming, (part,))
    except BaseMismatch as error:
        return error.message
    except NotMergeable:
        return ""
    return mismatch(naming, found, config)


def _whole_mismatch(naming: Naming, part: Delta | Transform) -> str:
    try:
        spot(naming, part)
    except BaseMismatch as error:
        return error.message
    except NotMergeable:
        pass
    return ""


def wrong_ranks(naming: Naming, adapter: Adapter, parts: Meaning) -> Iterator[str]:
    """Factors of experts show their rank only beside a base, which says how many experts it has."""
    several = [part for part in parts if isinstance(part, LowRank) and part.layout == "experts"]
    ranks = method(adapter.method).implementation.ranks(adapter) if several else None
    for part in several:
        name = f"{part.module}.{part.parameter}"
        expected = ranks.by_module.get(name) if ranks else None
        try:
            rank = sites(naming, part, adapter.config)[0].a.shape[0]
        except (BaseMismatch, NotMergeable):
            continue  # said elsewhere
        if expected is not None and rank != expected:
            yield (
                f"{name}: for the experts of this base the adapter has rank {rank}, its config "
                f"says r={expected}"
            )
