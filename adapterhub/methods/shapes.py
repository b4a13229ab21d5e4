"""`shapes` of a native config: of each parameter that a method changes without showing its size.

    {"model.layers.0.mlp.down_proj.weight": [16, 24], "model.norm.weight": [16]}

A shape is the formula's: (out, in, *kernel) of a weight, whatever way round the base stores it (a
Conv1D of GPT-2 stores (in, out)); (vocabulary, dim) of an embedding; (n,) of a norm or a bias.
Indices count elements in C order of that shape.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, Literal

from adapterhub.adapter import Adapter, Problem
from adapterhub.methods.generic import REMEDY
from adapterhub.methods.mergeable import adapted
from adapterhub.methods.signature import Signature
from adapterhub.tensorfile import shown

Parameter = Literal["weight", "bias"]
PARAMETERS: tuple[Parameter, ...] = ("weight", "bias")
MOST_TOLD = 10  # problems of a kind
MOST = 1 << 40  # elements; no parameter is nearly as large


def changed(adapter: Adapter) -> Iterator[tuple[str, Parameter]]:
    """`(module, parameter)` of all that has tensors of its own."""
    for module, roles in adapted(adapter):
        for parameter in PARAMETERS:
            if any(role.startswith(f"{parameter}.") for role in roles):
                yield module, parameter


def shape(adapter: Adapter, module: str, parameter: str) -> tuple[int, ...]:
    """Of a parameter that `problems` had nothing against."""
    return tuple(adapter.config["shapes"][f"{module}.{parameter}"])


def problems(adapter: Adapter) -> Iterator[Problem]:
    """Fatal for a parameter whose shape is missing or impossible, and for shapes of nothing."""
    shapes = adapter.config.get("shapes")
    shapes = shapes if isinstance(shapes, dict) else {}
    wanted: dict[str, str] = {
        f"{module}.{parameter}": parameter for module, parameter in changed(adapter)
    }
    for name in sorted(wanted.keys() - shapes.keys())[:MOST_TOLD]:
        yield _fatal("missing-shape", f"the config has no shape for {shown(name)}")
    for name in sorted(shapes.keys() - wanted.keys())[:MOST_TOLD]:
        yield _fatal("odd-shape", f"shapes names {shown(name)}, and the weights hold nothing of it")
    for name in sorted(wanted.keys() & shapes.keys()):
        if said := _wrong(shapes[name], wanted[name]):
            yield _fatal("config-mismatch", f"the shape of {shown(name)} {said}")


def _wrong(found: Any, parameter: str) -> str:
    if not isinstance(found, list) or not all(type(size) is int and size > 0 for size in found):
        return f"is {str(found)[:80]}, expected a list of sizes"
    if not 1 <= len(found) <= 5 or (parameter == "bias" and len(found) != 1):
        return f"has {len(found)} dimensions"
    if math.prod(found) > MOST:
        return f"has {math.prod(found):,} elements, at most {MOST:,} are taken"
    return ""


def _fatal(code: str, message: str) -> Problem:
    return Problem(code, message, REMEDY, fatal=True)


def signature(adapter: Adapter, plain: Signature) -> Signature:
    """`plain` with the sides of the weights that the shapes tell."""
    sides: dict[str, tuple[int | None, int | None]] = dict(plain.modules)
    for module, parameter in changed(adapter):
        found = shape(adapter, module, parameter)
        if parameter == "weight" and len(found) > 1:
            sides[module] = (found[0], found[1])
    return Signature(sides, plain.whole)
