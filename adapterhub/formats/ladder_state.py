"""Ladder side-tuning as its authors save it: in the state of a T5 that they changed. Named only.

    encoder.block.0.side_ladder_module.…      a side layer; of others side_block.0.…
    encoder.side_gate_params.0                its gate
    encoder.side_upsample.weight, encoder.final_side_layer_norm.weight, …

How encoder and decoder climb together, and which layers were dropped, stands in their code and in
the arguments of the run, not here. The native spelling says all of it: `methods.ladder_side`.
"""

from __future__ import annotations

import re

from adapterhub.adapter import Outline, Reading
from adapterhub.formats import named
from adapterhub.formats.contents import Content
from adapterhub.formats.sight import Sight

FORMAT = "ladder_state"
METHOD = "ladder_side"
_OWN = re.compile(
    r"(\S+\.)?(side_ladder_module|side_block|side_gate_params|side_(first_|final_)?"
    r"(up|down)samples?|final_side_layer_norm)(\.\S+)?"
)
_SURE = re.compile(r"(\S+\.)?(side_ladder_module|side_gate_params|final_side_layer_norm)(\.\S+)?")
_WHY = "which layers it climbs, and how, stands in the arguments of its run and not in the file"
_REMEDY = (
    "write it as native, with its layers and its `output` named: see schemas/methods/"
    "ladder_side.json and README, Native adapters"
)


def recognises(sight: Sight) -> bool:
    return not sight.has_config and sight.find(_is_ladder) is not None


def _is_ladder(content: Content) -> bool:
    if content.kind not in ("pickle", "safetensors"):
        return False
    return any(_SURE.fullmatch(name) for name in content.shapes)


def read(sight: Sight, *, allow_pickle: bool) -> Reading:
    found = sight.all(_is_ladder)
    names = (name for content in found for name in content.shapes if _OWN.fullmatch(name))
    targets = tuple(dict.fromkeys(name.rpartition(".")[0] for name in names))
    title = "ladders in the state of a T5"
    outline = Outline(targets=targets)
    return named.reading(
        sight, FORMAT, title, found, outline, method=METHOD, why=_WHY, remedy=_REMEDY
    )
