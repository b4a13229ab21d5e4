"""Quantised bases: recognised by name, and refused."""

from __future__ import annotations

from adapterhub.base import Base
from adapterhub.errors import NotMergeable
from adapterhub.methods import Delta, LowRank, Meaning, Shaped, Transform
from adapterhub.registry.naming import Naming
from adapterhub.registry.places import stored_names
from adapterhub.registry.whole import stored_name
from adapterhub.tensorfile import shown

FLOATS = ("F32", "F16", "BF16")  # what the formula of DESIGN §4 covers
# What stands in a module beside or instead of a quantised weight, by who writes it: GPTQ, AWQ and
# EETQ; bitsandbytes; fp8 and compressed-tensors; AQLM, HQQ and their like.
_BESIDE = (
    *("qweight", "qzeros", "scales", "g_idx", "weight_scales"),
    *("SCB", "weight_format", "weight.SCB", "weight.absmax", "weight.quant_map"),
    *("weight_scale", "weight_scale_inv", "weight_zero_point", "weight_packed", "weight_shape"),
    *("weight_global_scale", "codebooks", "codes", "W_q"),
)


def refuse_quantised(base: Base, meaning: Meaning) -> None:
    """Raises NotMergeable for the first weight that is touched and not stored as it is.

    Before shapes are compared, since packed weights have other shapes. Weights that a quantiser
    left alone, of a head for example, can be merged.
    """
    naming = Naming(base)
    for part in meaning:
        names = stored_names(naming, part) if isinstance(part, LowRank) else ()
        if isinstance(part, Delta | Transform) and stored_name(naming, part) in base.tensors:
            names = (stored_name(naming, part),)
        if isinstance(part, Shaped) and f"{naming.stored(part.module)}.weight" in base.tensors:
            names = (f"{naming.stored(part.module)}.weight",)
        modules = {naming.stored(part.module), *(name.rpartition(".")[0] for name in names)}
        for module in sorted(modules):
            _refuse_what_stands_beside(base, module)
        for name in names:
            refuse_dtype(name, base.tensors[name].dtype, base)


def _refuse_what_stands_beside(base: Base, module: str) -> None:
    found = next((f"{module}.{name}" for name in _BESIDE if f"{module}.{name}" in base.tensors), "")
    if found:
        raise NotMergeable(
            f"{module} of {base.path} is quantised ({quantiser(base)}): {found} stands in it",
            remedy="give the full-precision base, from which this one was made",
        )


def refuse_dtype(name: str, dtype: str, base: Base) -> None:
    """Raises NotMergeable for a stored dtype that the formula does not cover."""
    if dtype not in FLOATS:
        by = f", quantised ({quantiser(base)})" if base.config.get("quantization_config") else ""
        raise NotMergeable(
            f"{name} of {base.path} is stored as {dtype}{by}; only {', '.join(FLOATS)} can be "
            "merged",
            remedy="give the full-precision base",
        )


def quantiser(base: Base) -> str:
    """What config.json calls the method, with its bits where it says so."""
    config = base.config.get("quantization_config")
    if not isinstance(config, dict):
        return "by a method that config.json does not name"
    method = config.get("quant_method")
    if not isinstance(method, str):
        known = config.get("load_in_8bit") or config.get("load_in_4bit")
        method = "bitsandbytes" if known else "by a method without a name"
    bits = 4 if config.get("load_in_4bit") else 8 if config.get("load_in_8bit") else None
    bits = config.get("bits", bits)
    return shown(method) + (f", {bits} bits" if isinstance(bits, int) else "")
