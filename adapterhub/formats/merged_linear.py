"""LoRA as PEFT wrote it before 0.4 for fused layers: loralib's MergedLinear. Named, not read.

Each enabled part of the fused layer (query, key, value) has factors of its own, packed into one
pair: A: (rank · parts, in), B: (out of the enabled parts, rank, 1), applied as a grouped
convolution. The config's `enable_lora` says which parts; present-day PEFT knows neither field nor
shapes. Source: peft 0.3, tuners/lora.py.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from adapterhub.adapter import Outline, Reading
from adapterhub.formats import named
from adapterhub.formats.claims import claim
from adapterhub.formats.sight import Sight

FORMAT = "peft_merged_linear"
_TABLE = ((r"lora_A(\.weight)?", 0),)


def is_config(config: Mapping[str, Any]) -> bool:
    """A LoRA of PEFT whose `enable_lora` is a list of parts."""
    enabled = config.get("enable_lora")
    return config.get("peft_type") == "LORA" and isinstance(enabled, list) and bool(enabled)


def recognises(sight: Sight) -> bool:
    return is_config(sight.config)


def read(sight: Sight, *, allow_pickle: bool) -> Reading:
    contents = tuple(sight.contents)
    packed, modules = named.ranks(contents, _TABLE)
    parts = sum(bool(part) for part in sight.config["enable_lora"])
    ranks = {m: rank // parts for m, rank in packed.items() if parts and rank % parts == 0}
    return named.reading(
        sight,
        FORMAT,
        "adapters of peft before 0.4 for fused layers (MergedLinear)",
        contents,
        Outline(ranks, modules, named.number(sight.config.get("lora_alpha")), claim(sight.config)),
        method="lora",
        config=sight.config,
    )
