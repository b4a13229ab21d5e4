"""The order in which a model has its modules, which no file tells."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache

from adapterhub._introspect.describing import _build, _config, _quiet
from adapterhub._introspect.saving import starred

Key = tuple[int, ...]


def ordered(model_type: str, class_name: str, paths: Sequence[str]) -> list[str] | None:
    """`paths` in the order of `named_modules` of the class; None where transformers lacks one.

    Asked of a model of the default config, whose blocks are built in the same order as all others.
    """
    places = _places(model_type, class_name)
    keys = {path: _key(path, places) for path in paths}
    known = {path: key for path, key in keys.items() if key is not None}
    return sorted(known, key=lambda path: known[path]) if len(known) == len(paths) else None


@cache
def _places(model_type: str, class_name: str) -> Mapping[str, int]:
    """Where each module first comes, numbers of blocks as `*`; empty for an unknown class."""
    import transformers

    cls = getattr(transformers, class_name, None)
    if cls is None or model_type not in transformers.CONFIG_MAPPING:
        return {}
    with _quiet():
        model = _build(cls, _config(model_type, {}))
    names = () if model is None else (starred(name) for name, _ in model.named_modules())
    return {name: place for place, name in enumerate(dict.fromkeys(names))}


def _key(path: str, places: Mapping[str, int]) -> Key | None:
    """Places of all that contain it, from the outside in; of blocks, their numbers."""
    parts = path.split(".")
    found = []
    for end, part in enumerate(parts, 1):
        place = places.get(starred(".".join(parts[:end])))
        if place is None:
            return None
        found.append(int(part) if starred(part) == "*" else place)
    return tuple(found)
