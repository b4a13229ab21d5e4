"""What a config tells of its base without naming it outright."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from adapterhub.adapter import BaseClaim

# As repositories spell it, between separators: `…-bnb-4bit`, `…-AWQ`, `…-GPTQ-Int4`, `…-fp8`.
_NAMED = (
    (r"bnb-4bit|nf4", "bitsandbytes 4 bit"),
    (r"bnb-8bit", "bitsandbytes 8 bit"),
    (r"gptq", "GPTQ"),
    (r"awq", "AWQ"),
    (r"fp8|f8", "fp8"),
    (r"gguf|i?q[1-8]_[0-9a-z]+(_[sml])?", "GGUF"),
    (r"4-?bits?|int4|w4a16", "4 bit"),
    (r"8-?bits?|int8|w8a8", "8 bit"),
    (r"quanti[sz]ed", "quantised"),
)
_PATTERNS = tuple((re.compile(rf"(?:^|[-_/.])(?:{p})(?=$|[-_/.])"), what) for p, what in _NAMED)
_UNDONE = re.compile(r"unquanti[sz]ed|dequanti[sz]ed")


def claim(config: Mapping[str, Any]) -> BaseClaim:
    """What a config in PEFT's spelling says of its base."""
    name, revision = (
        value if isinstance(value := config.get(field), str) and value else None
        for field in ("base_model_name_or_path", "revision")
    )
    return BaseClaim(name, revision, quantization_of(config, name))


def quantization_of(config: Mapping[str, Any], base: str | None) -> str | None:
    """How the base was quantised while the adapter was trained, in words; None: nothing says so.

    PEFT records it nowhere (a QLoRA is a LoRA on disk), so this is the method's own fields and what
    the name of the base tells.
    """
    if config.get("use_qalora"):
        return "GPTQ"
    if str(config.get("init_lora_weights")).lower() == "loftq":
        said = config.get("loftq_config") or {}
        bits = said.get("loftq_bits", 4) if isinstance(said, dict) else None
        return f"LoftQ {bits} bit" if bits in (2, 4, 8) else "LoftQ"
    return quantization_named(base)


def quantization_named(base: str | None) -> str | None:
    """How a base of this name is quantised, in words; None where the name says nothing of it."""
    name = (base or "")[:500].lower()
    if _UNDONE.search(name):
        return None
    return next((what for pattern, what in _PATTERNS if pattern.search(name)), None)
