"""LyCORIS: LoHa, LoKr, LoCon, (IA)³, OFT, GLoRA, norms and whole differences in one file. Named.

Told by what names end in, after a module of kohya's spelling or after `lycoris_…`. Source:
lycoris/modules/*.py.
"""

from __future__ import annotations

import re

from adapterhub.adapter import Reading
from adapterhub.formats import kohya, named
from adapterhub.formats.contents import Content
from adapterhub.formats.sight import Sight

_MODULE = r"(lora_(unet|te\d?)|lycoris)_[^.]+"
# Method → what a name ends in.
_SUFFIXES = {
    "lokr": r"lokr_(w[12](_[ab])?|t[12])",
    "loha": r"hada_(w[12]_[ab]|t[12])",
    "oft": r"oft_blocks|oft_diag|rescale",
    "glora": r"(a[12]|b[12]|bm)\.weight",
    "ia3": r"on_input",
    "norm": r"[wb]_norm",
    "full": r"diff(_b)?",
    "lora": r"lora_mid\.weight|dora_scale",
}
_OF_METHOD = {method: re.compile(rf"{_MODULE}\.({suffix})") for method, suffix in _SUFFIXES.items()}
_LYCORIS = re.compile(r"lycoris_[^.]+\..+")
_RANKS = (
    (r"\.lokr_w1_a|\.lokr_w2_a|\.hada_w1_a|\.hada_w2_a", 1),
    (r"\.lokr_w1_b|\.lokr_w2_b|\.hada_w1_b|\.hada_w2_b", 0),
    (r"\.lora_down\.weight", 0),
    (r"\.lokr_w[12]|\.oft_blocks|\.a1\.weight|\.w_norm|\.diff|\.on_input", 99),  # no rank
)


def recognises(sight: Sight) -> bool:
    return sight.find(is_lycoris) is not None


def is_lycoris(content: Content) -> bool:
    return any(
        _LYCORIS.fullmatch(name) or any(p.fullmatch(name) for p in _OF_METHOD.values())
        for name in content.shapes
    )


def read(sight: Sight, *, allow_pickle: bool) -> Reading:
    found = sight.all(is_lycoris)
    methods = [m for m, p in _OF_METHOD.items() if any(map(p.fullmatch, found[0].shapes))]
    method = methods[0] if len(methods) == 1 else None
    if not methods:
        method = "lora" if any(".lora_down." in name for name in found[0].shapes) else None
    outline = named.outline(
        found[:1], _RANKS, alpha=kohya.alpha(found[0]), base=kohya.base(found[0])
    )
    title = f"LyCORIS adapters ({', '.join(methods) or 'locon'})"
    return named.reading(sight, "lycoris", title, found, outline, method=method)
