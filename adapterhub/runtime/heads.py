"""An adapter without the head that was trained with it, for models that have none, or their own."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from adapterhub.adapter import REPLACE, Adapter
from adapterhub.merging.work import Source
from adapterhub.runtime.live import Live

Place = tuple[str, str]


def heads_of(live: Live, adapter: Adapter) -> tuple[Place, ...]:
    """`(module, role)` of whole tensors that are none of the base model's.

    All of AdapterHub's, whose heads have names of their own; else those of a module that is a head
    of the model's class, or that the model has not.
    """
    whole = [(m, r) for m, r, _ in adapter.tensors() if m and r.startswith(REPLACE)]
    return tuple(place for place in whole if _is_head(live, adapter, place[0]))


def _is_head(live: Live, adapter: Adapter, module: str) -> bool:
    if adapter.format == "adapterhub":
        return True
    path, found = live.naming.stored(module), live.base.model_class
    there = any(name.startswith(f"{path}.") for name in live.held)
    return not there or (found is not None and found.is_head(path))


def without(source: Source, places: Iterable[Place]) -> Source:
    """The same adapter without these tensors, and without the labels of its head."""
    gone = set(places)
    if not gone:
        return source
    kept = {
        module: {role: tensor for role, tensor in roles.items() if (module, role) not in gone}
        for module, roles in source.adapter.modules.items()
    }
    modules = {module: roles for module, roles in kept.items() if roles}
    return replace(source, adapter=replace(source.adapter, modules=modules, labels=()))
