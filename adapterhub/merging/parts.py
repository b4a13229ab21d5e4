"""What each adapter of a merge means: all of it, or the part that was asked for (`Source.part`)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from functools import partial

from adapterhub.adapter import REPLACE, Adapter
from adapterhub.base import Base
from adapterhub.errors import AdapterHubError, InvalidAdapter, NotMergeable
from adapterhub.formats import adapterhub_config
from adapterhub.merging.work import Fate, Options, Source
from adapterhub.methods import Meaning, method, unions
from adapterhub.methods.lora_places import fused_of
from adapterhub.registry.around import around_in, meaning_of
from adapterhub.registry.fit import Naming

LEFT_OUT = "left out: --part lora"
_ALONE = (
    'merge its LoRA alone: --part lora (part="lora"), which leaves out the rest; or attach all of '
    "it to a model in memory: ah.attach(model, REF)"
)


def meaning(base: Base, source: Source, options: Options) -> Meaning:
    """Raises NotMergeable and InvalidAdapter."""
    if source.part is not None:
        return _part(base, source)
    around = partial(around_in, base, source.adapter)
    try:
        return meaning_of(source.adapter, around, base_is_initialised=options.base_is_initialised)
    except NotMergeable as error:
        if not _has_part(base, source.adapter):
            raise
        raise NotMergeable(error.message, remedy=_ALONE, details=error.details) from error


def _part(base: Base, source: Source) -> Meaning:
    try:
        return _lora(base, source.adapter)
    except (InvalidAdapter, NotMergeable) as error:
        raise type(error)(
            f"{source.name}: {error.message}", remedy=error.remedy, details=error.details
        ) from error


def _has_part(base: Base, adapter: Adapter) -> bool:
    if adapter.method not in unions.METHODS:
        return False
    try:
        return bool(_lora(base, adapter))
    except AdapterHubError:
        return False


def _lora(base: Base, adapter: Adapter) -> Meaning:
    alpha = adapterhub_config.alpha_of(unions.member(adapter), adapter.config)
    naming = Naming(base)

    def place(module: str) -> tuple[str, str]:
        found = fused_of(base.model_type, module)
        if found is None:
            return module, ""
        own = f"{naming.stored(module)}.weight" in base.tensors
        return module if own else found[0], found[1]

    return unions.lora(adapter, alpha, place)


# --- what is left out -------------------------------------------------------------------------


def idle(sources: Sequence[Source]) -> Iterator[Fate]:
    """The fates of tensors that nothing is made of."""
    for number, source in enumerate(sources):
        if source.part is not None:
            for module, role in _others(source.adapter):
                yield Fate(number, f"{module}.{role}".lstrip("."), LEFT_OUT)
            continue
        found = method(source.adapter.method).implementation.idle(source.adapter)
        for module, role, why in found:
            yield Fate(number, f"{module}.{role}", f"unused: {why}")


def _others(adapter: Adapter) -> list[tuple[str, str]]:
    return [(module, role) for module, role, _ in adapter.tensors() if not unions.is_lora(role)]


def notes(sources: Sequence[Source]) -> Iterator[str]:
    for source in sources:
        if source.part is not None:
            counts = Counter(_whose(*place) for place in _others(source.adapter))
            listed = ", ".join(f"{n} of {whose}" for whose, n in sorted(counts.items()))
            title = method(source.adapter.method).title
            yield (
                f"of {source.name} ({title}) only the LoRA is merged (--part lora); left out are "
                f"{sum(counts.values())} tensors{': ' if listed else ''}{listed}"
            )


def _whose(module: str, role: str) -> str:
    if role.startswith(REPLACE):
        return "the head"
    return "the prefixes" if unions.kind(module, role) else "the bottlenecks"
