"""pyreft: config.json + intkey_<place>.bin for each intervention. Named, not read yet.

    weight [r, hidden]   bias [r]   rotate_layer [hidden, r]

Source: pyreft/reft_model.py and pyvene's save_intervention.
"""

from __future__ import annotations

import re

from adapterhub.adapter import Outline, Reading
from adapterhub.formats import named
from adapterhub.formats.contents import Content
from adapterhub.formats.sight import Sight

_FILE = re.compile(r"intkey_.+\.bin")
_NAMES = frozenset(("weight", "bias", "rotate_layer", "learned_source.weight", "proj_layer.weight"))


def recognises(sight: Sight) -> bool:
    return any(_FILE.fullmatch(name) for name in sight.weights) and (
        sight.find(_is_intervention) is not None
    )


def _is_intervention(content: Content) -> bool:
    """By its own file name; and by the names in it, as far as they can be read."""
    if not _FILE.fullmatch(content.name):
        return False
    return not content.shapes or not _NAMES.isdisjoint(content.shapes)


def read(sight: Sight, *, allow_pickle: bool) -> Reading:
    found = sight.all(_is_intervention)
    places = [name for name in sight.weights if _FILE.fullmatch(name)]
    ranks = {c.name[7:-4]: rank for c in found if (rank := _rank(c))}
    outline = Outline(ranks, tuple(name[7:-4] for name in places))
    return named.reading(
        sight,
        "pyreft",
        "pyreft adapters",
        found,
        outline,
        method="reft",
        companions=("config.json",),
    )


def _rank(content: Content) -> int:
    weight = content.shapes.get("weight")
    if weight and len(weight) == 2:
        return weight[0]
    rotate = content.shapes.get("rotate_layer")
    return rotate[1] if rotate and len(rotate) == 2 else 0
