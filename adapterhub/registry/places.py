"""Where in a base the factors of an adapter belong: which tensors, and which matrix of each."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from adapterhub.errors import BaseMismatch, NotMergeable
from adapterhub.methods import LowRank
from adapterhub.registry.experts import (
    Site,
    in_fused,
    of_parts,
    of_tensor,
    swapped_in_and_out,
)
from adapterhub.registry.naming import Fusion, Naming


def sites(naming: Naming, part: LowRank, config: Mapping[str, Any]) -> tuple[Site, ...]:
    """What `part` is added to; `config` is the adapter's.

    Raises BaseMismatch, its message a sentence about the part, and NotMergeable.
    """
    if part.layout == "experts":
        found = _expert_sites(naming, part, config)
    else:
        found = (_site(naming, part),)
    if part.magnitude is not None:
        _check_magnitude(part, part.magnitude.shape)
    return found


def stored_names(naming: Naming, part: LowRank) -> tuple[str, ...]:
    """The tensors that `part` changes, as far as they can be named before shapes are compared."""
    name = naming.parameter(part)
    if name in naming.base.tensors:
        return (name,)
    if part.layout == "experts":
        fusion = naming.fusion(part)
        parts = fusion.parts if fusion else ()
        return tuple(name for part in parts for name in naming.experts(part).values())
    home = naming.fused_home(part.module)
    return (home.stored,) if home else ()


def _site(naming: Naming, part: LowRank) -> Site:
    stored = naming.parameter(part)
    there = naming.base.tensors.get(stored)
    if there is None:
        home = naming.fused_home(part.module)
        if home is None or part.parameter is not None:
            raise BaseMismatch(missing(naming, part.module, part.parameter or "weight"))
        _refuse_transposed(part, home.stored, home.transposed)
        shape = naming.base.tensors[home.stored].shape
        return in_fused(
            home.stored, shape, part, expert=home.expert, number=home.number, of=home.of
        )
    if delta_shape(naming, part) != there.shape:
        raise BaseMismatch(_misfit(naming, part, stored))
    return Site(stored, part.a, part.b, transposed=naming.transposed(part))


def _refuse_transposed(part: LowRank, stored: str, transposed: bool) -> None:
    if transposed:
        raise NotMergeable(
            f"{part.module}: the base holds its rows as columns of {stored}, a fused tensor that "
            "is stored transposed",
            remedy="give a base whose files hold a tensor for each expert",
        )


def _expert_sites(naming: Naming, part: LowRank, config: Mapping[str, Any]) -> tuple[Site, ...]:
    swapped = swapped_in_and_out(config)
    fusion = naming.fusion(part)
    stored = naming.parameter(part)
    there = naming.base.tensors.get(stored)
    if there is not None and len(there.shape) == 2:
        if delta_shape(naming, part) != there.shape:
            raise BaseMismatch(_misfit(naming, part, stored))
        return (Site(stored, part.a, part.b),)
    if there is not None and len(there.shape) == 3:
        own = fusion.transposed if fusion else None
        return of_tensor(stored, there.shape, part, transposed=_either(own, swapped))
    if there is not None or fusion is None:
        raise BaseMismatch(missing(naming, part.module, part.parameter or "weight"))
    return of_parts(
        _experts_of(naming, part, fusion),
        part,
        transposed=False if fusion.transposed else swapped,
    )


def _either(own: bool | None, swapped: bool | None) -> bool | None:
    """What is true of one is true; what is not known of one is only known if the other is true."""
    if own or swapped:
        return True
    return None if own is None or swapped is None else False


def _experts_of(
    naming: Naming, part: LowRank, fusion: Fusion
) -> list[list[tuple[str, tuple[int, ...]]]]:
    """Name and shape of each part of each expert, none of which may be missing."""
    numbered = [naming.experts(pattern) for pattern in fusion.parts]
    count = max((max(experts, default=-1) for experts in numbered), default=-1) + 1
    if not count:
        raise BaseMismatch(missing(naming, part.module, part.parameter or "weight"))
    for pattern, experts in zip(fusion.parts, numbered, strict=True):
        if len(experts) < count:
            lacking = next(number for number in range(count) if number not in experts)
            name = pattern.replace("*", str(lacking))
            raise BaseMismatch(f"{part.module}.{part.parameter}: the base has no {name}")
    shapes = {
        name: naming.base.tensors[name].shape for found in numbered for name in found.values()
    }
    return [[(e[number], shapes[e[number]]) for number in range(count)] for e in numbered]


# --- shapes -----------------------------------------------------------------------------------


def delta_shape(naming: Naming, part: LowRank) -> tuple[int, ...]:
    """Shape, as stored, of the factors' product; () for a layout outside the formula."""
    out, rest = part.b.shape[0], part.a.shape[1:]
    if naming.transposed(part):
        return (*rest, out)
    if any(size != 1 for size in part.b.shape[2:]):
        return ()
    return (out, *rest)


def missing(naming: Naming, module: str, parameter: str) -> str:
    """The sentence that the base has no such tensor, with what is known about it."""
    tie = naming.base.tied.get(f"{naming.stored(module)}.{parameter}")
    why = f"; it is tied to {tie}" if tie else ""
    if parameter == "bias" and f"{naming.stored(module)}.weight" in naming.base.tensors:
        why += "; its layer has no bias, and gets one in memory only (ah.attach)"
    if naming.base.config.get("quantization_config"):
        why += "; the base is quantised, give the full-precision one"
    return f"{module}.{parameter}: the base has no such tensor{why}"


def _misfit(naming: Naming, part: LowRank, stored: str) -> str:
    there = naming.base.tensors[stored]
    shape = delta_shape(naming, part)
    got = f"factors of shape {list(shape)}" if shape else "factors of an unknown layout"
    packed = f" ({there.dtype})" if there.dtype not in ("F32", "F16", "BF16") else ""
    name = part.module if part.parameter is None else f"{part.module}.{part.parameter}"
    return f"{name}: the adapter has {got}, the base a weight of {list(there.shape)}{packed}"


def _check_magnitude(part: LowRank, shape: tuple[int, ...]) -> None:
    """DoRA's has one value per row of the formula."""
    out = part.b.shape[0]
    if math.prod(shape) != out:
        raise BaseMismatch(
            f"{part.module}: the adapter has a magnitude of shape {list(shape)}, expected a value "
            f"for each of {out} rows"
        )
