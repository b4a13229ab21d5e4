"""Rank, alpha and scaling: from the tensors, and from the config where no tensors tell."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from adapterhub.adapter import REPLACE, Adapter, Outline
from adapterhub.errors import InvalidAdapter
from adapterhub.methods import TABLE as METHODS
from adapterhub.methods import method
from adapterhub.methods.layouts import LAYOUTS
from adapterhub.methods.patterns import Clock, Patterns

# What PEFT calls alpha, where that is neither `lora_alpha` nor `alpha`.
_ALPHA = {"psoft": "psoft_alpha", "randlora": "randlora_alpha", "shadow": "shadow_alpha"}
# Those that multiply by alpha over rank (peft/tuners/*/layer.py); AdaLoRA by the rank that is left.
_OVER_RANK = frozenset(
    ("lora", "adalora", "deft", "gralora", "krona", "loha", "lokr", "psoft", "randlora")
)
_SCALING = "scaling"  # the field of those that name the factor itself


def number(value: Any) -> float | None:
    """A finite number, or None."""
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    return value if is_number and math.isfinite(value) else None


# --- rank -------------------------------------------------------------------------------------


def rank_summary(adapter: Adapter) -> dict[str, Any] | None:
    """Lowest and highest rank, and the modules that differ from the most frequent one."""
    ranks = method(adapter.method).implementation.ranks(adapter)
    return _summary(ranks.by_module) if ranks else None


def _summary(by_module: Mapping[str, Any]) -> dict[str, Any]:
    usual = Counter(by_module.values()).most_common(1)[0][0]
    pattern = {m: value for m, value in sorted(by_module.items()) if value != usual}
    return {"min": min(by_module.values()), "max": max(by_module.values()), "pattern": pattern}


def rank(
    name: str | None, adapter: Adapter | None, outline: Outline, config: Mapping[str, Any]
) -> dict[str, Any] | None:
    """From the tensors, with what the config says beside it; `min` and `max` are None where only
    the config tells.
    """
    found = rank_summary(adapter) if adapter else None
    if found is None and outline.ranks:
        found = _summary(outline.ranks)
    declared = outline.declared if outline.declared else declared_rank(name, config)
    if found is None:
        found = {"min": None, "max": None, "pattern": {}}
        return {**found, "declared": declared} if declared is not None else None
    return {**found, "declared": declared}


def declared_rank(name: str | None, config: Mapping[str, Any]) -> int | None:
    """What the config says of the rank; None for a method that has none."""
    row = METHODS.get(name or "")
    if row is not None and row.rank is None:
        return None
    layout = LAYOUTS.get(name or "")
    size = layout.sizes.get(layout.rank) if layout else None
    value = config.get(size.field if size else "r")
    return value if isinstance(value, int) and not isinstance(value, bool) else None


# --- alpha and scaling ------------------------------------------------------------------------


def alpha(name: str | None, config: Mapping[str, Any]) -> float | None:
    """As the config says, under whichever name the method has for it."""
    field = _ALPHA.get(name or "", "lora_alpha")
    return number(config.get(field, config.get("alpha")))


def _default(name: str, field: str) -> float | None:
    """What PEFT takes where the config is silent."""
    return number(METHODS[name].properties.get(field, {}).get("default"))


def effective_alpha(name: str | None, config: Mapping[str, Any]) -> float | None:
    """As `alpha`; for a config of PEFT that is silent, what PEFT takes then."""
    field = _ALPHA.get(name or "", "lora_alpha")
    if (
        name is None
        or name not in METHODS
        or "peft_type" not in config
        or {field, "alpha"} & config.keys()
    ):
        return alpha(name, config)
    stated = _default(name, field)
    return _default(name, "alpha") if stated is None else stated


def scaling(
    name: str | None, adapter: Adapter | None, outline: Outline, config: Mapping[str, Any]
) -> dict[str, Any] | None:
    """The factor that each module's change is multiplied by, summed up as ranks are.

    None for a method that has none, and where the config does not say.
    """
    if name is None or name not in METHODS:
        return None
    if _SCALING in METHODS[name].properties:
        stated = config.get(_SCALING)
        factor = number(stated) if stated is not None else _default(name, _SCALING)
        return None if factor is None else _summary({"": factor})
    overall = effective_alpha(name, config)
    overall = outline.alpha if overall is None else overall
    if name not in _OVER_RANK or overall is None:
        return None
    try:
        found = _over_rank(
            _modules(adapter, outline), _ratio(name, config, overall, outline.declared)
        )
    except (InvalidAdapter, OverflowError):
        return None  # the problems say why
    return _summary(found) if found else None


Ratio = Callable[[str, "int | None"], "float | None"]


def _ratio(name: str, config: Mapping[str, Any], overall: float, declared: int | None) -> Ratio:
    """`(module, rank of its tensors) → factor`; None where no rank is known."""
    clock = Clock()
    ranks, alphas = (_patterns(config, f"{what}_pattern", clock) for what in ("rank", "alpha"))
    declared = declared or declared_rank(name, config)
    extra = declared_rank(None, {"r": config.get("hybrid_r")}) if name == "gralora" else None

    def ratio(module: str, own: int | None) -> float | None:
        if not module and (ranks.values or alphas.values):
            return None  # without the modules there is no telling
        top = number(alphas.find(module))
        rank = own or number(ranks.find(module)) or declared
        if not rank or rank < 0:
            return None
        below = rank + (extra or 0)
        by = math.sqrt(below) if name == "lora" and config.get("use_rslora") else below
        return (overall if top is None else top) / by

    return ratio


def _patterns(config: Mapping[str, Any], field: str, clock: Clock) -> Patterns:
    values = config.get(field)
    return Patterns(values if isinstance(values, dict) else {}, field=field, clock=clock)


def _modules(adapter: Adapter | None, outline: Outline) -> Mapping[str, int | None]:
    """Module → its rank; "" stands for all where no tensors tell."""
    if adapter is None:
        return dict(outline.ranks) or {"": None}
    ranks = method(adapter.method).implementation.ranks(adapter)
    by_module: dict[str, int | None] = dict(ranks.by_module) if ranks else {}
    if adapter.method != "lora":  # factors may be whole, and have no rank of their own
        roles = ((m, role) for m, role, _ in adapter.tensors())
        touched = dict.fromkeys(m for m, role in roles if m and not role.startswith(REPLACE))
        by_module = touched | by_module
    return by_module or {"": None}


def _over_rank(modules: Mapping[str, int | None], ratio: Ratio) -> dict[str, float]:
    found = ((module, ratio(module, own)) for module, own in modules.items())
    return {module: factor for module, factor in found if factor is not None}


# --- what the config names --------------------------------------------------------------------


def names(value: Any) -> tuple[str, ...]:
    """A field like `target_modules`: a list of names, or one pattern."""
    if isinstance(value, str):
        return (value,) if value else ()
    found: Iterable[Any] = value if isinstance(value, list) else ()
    return tuple(sorted({name for name in found if isinstance(name, str) and name}))
