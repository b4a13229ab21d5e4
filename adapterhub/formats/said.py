"""Intrinsic SAID as its authors' code saves it: named, and why it cannot be read.

    intrinsic_parameter           [d]    the point in the subspace, θ
    intrinsic_parameter_said      [n]    λ, a number for each parameter of the model

What turns θ into weights is a random projection that was drawn from the generators of the process
that trained it, and is in no file: see `methods.intrinsic_said`.
"""

from __future__ import annotations

import re

from adapterhub.adapter import Outline, Reading
from adapterhub.formats import named
from adapterhub.formats.contents import Content
from adapterhub.formats.sight import Sight

FORMAT = "said"
METHOD = "intrinsic_said"
_OWN = re.compile(r"(\S+\.)?intrinsic_parameter(_said)?")
_WHY = (
    "they hold a point of a random subspace, and not the subspace, which was drawn anew by the "
    "process that trained them"
)
_REMEDY = (
    "keep what it did to the weights, where you have the trained checkpoint: "
    "adapterhub.registry.sparse.difference(base, trained); a native one stores its seed"
)


def recognises(sight: Sight) -> bool:
    return not sight.has_config and sight.find(_is_said) is not None


def _is_said(content: Content) -> bool:
    if content.kind not in ("pickle", "safetensors"):
        return False
    return any(_OWN.fullmatch(name) for name in content.shapes)


def read(sight: Sight, *, allow_pickle: bool) -> Reading:
    found = sight.all(_is_said)
    outline = Outline(parameters=named.elements(found))
    title = "files of intrinsic SAID"
    return named.reading(
        sight, FORMAT, title, found, outline, method=METHOD, why=_WHY, remedy=_REMEDY
    )
