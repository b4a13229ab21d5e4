"""Sizes that tensors show, against what the config says of them; and those of prompts."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from adapterhub.adapter import Adapter
from adapterhub.methods.layout import Size
from adapterhub.methods.patterns import Patterns
from adapterhub.methods.table import method

_PROMPTS = ("prompt_tuning", "p_tuning", "multitask_prompt_tuning", "cpt")
_CACHES = ("prefix_tuning", "cartridge")


def contradiction(
    adapter: Adapter,
    size: Size,
    module: str,
    found: int,
    sides: tuple[int | None, int | None],
) -> str:
    """What the config says instead of `found`; "" where the two go together.

    `sides`: (out, in) of the weight, as far as known. Raises InvalidAdapter for patterns that
    cannot be used.
    """
    config = adapter.config
    expected = _expected(adapter, size, module)
    if expected is None or found == expected:
        return ""
    if size.open and config.get(size.open):
        return ""
    if size.unless and config.get(size.unless) and found <= expected:
        return ""
    if size.either and found == config.get(size.field):
        return ""
    if size.clamped and found < expected and (None in sides or found == min(s or 0 for s in sides)):
        return ""
    if size.field == "num_virtual_tokens" and found == expected * _parts(config):
        return ""
    return f"config says {size.field}={expected}"


def _expected(adapter: Adapter, size: Size, module: str) -> int | None:
    """None where nothing is said, or 0, which leaves it to another field."""
    config = adapter.config
    values = config.get(size.pattern) if size.pattern else None
    said = (
        Patterns(values, field=size.pattern).find(module) if isinstance(values, Mapping) else None
    )
    if said is None:
        default = method(adapter.method).properties.get(size.field, {}).get("default")
        said = config.get(size.field, default)
    is_number = isinstance(said, (int, float)) and not isinstance(said, bool)
    return int(said) or None if is_number else None


def _parts(config: Mapping[str, Any]) -> int:
    """An encoder and a decoder have a prompt each."""
    parts = config.get("num_transformer_submodules")
    return parts if isinstance(parts, int) and not isinstance(parts, bool) else 1


def prompt(
    adapter: Adapter, bound: Mapping[str, Mapping[str, int]]
) -> tuple[int | None, int | None, int | None]:
    """`(width, layers, kv_width)` of Signature, where the method is one of prompts."""
    total = bound.get("", {}).get("@width")
    if total is None or adapter.method in _PROMPTS:
        return total, None, None
    layers = adapter.config.get("num_layers")
    if adapter.method not in _CACHES or not isinstance(layers, int) or layers < 1:
        return None, None, None
    # A key and a value for each layer.
    return None, layers, total // (2 * layers) if total % (2 * layers) == 0 else None
