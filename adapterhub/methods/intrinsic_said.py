"""Intrinsic dimension: all weights in one small random subspace (Aghajanyan et al.,
https://arxiv.org/abs/2012.13255).

    DID     W = W₀ + P_W(θ)                θ: (d,)
    SAID    W = W₀ + λ_W · P_W(θ)          λ_W a number for each parameter: "structure-aware"

P_W is a Fastfood transform of its own for each parameter. The original's file holds θ
(`intrinsic_parameter`) and λ (`intrinsic_parameter_said`) alone; the signs, permutations and normal
numbers of P came from the global generators of torch and numpy at whatever state those were in, on
the device at hand, and were never saved. So such a file says nothing about W without the process
that trained it, and is refused; what it did can be kept as the difference of the two checkpoints.
Here the algorithm and its seed are part of the adapter, and P is exactly specified: `fastfood`.

Roles: `intrinsic_vector` (d,) of no module, θ; of each module `weight.scale` and `bias.scale` (1,),
λ, ones where it was not trained. Config: `algorithm`, `seed`, and `shapes` (see there), whose names
are those that P is drawn for. Only fp32 products and sums of two are taken, so that the bits are
the same everywhere: θ → P(θ), rounded as fastfood says, then times λ.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

from adapterhub.adapter import Adapter, Problem
from adapterhub.errors import InvalidAdapter
from adapterhub.methods import fastfood, generic, shapes
from adapterhub.methods.computed import Computed, fp32
from adapterhub.methods.generic import idle, ranks
from adapterhub.methods.meaning import Delta, Meaning, Values
from adapterhub.methods.mergeable import complete
from adapterhub.methods.signature import Signature
from adapterhub.tensorfile import Tensor

__all__ = ["idle", "meaning", "parts", "problems", "ranks", "signature"]
VECTOR = "intrinsic_vector"


def problems(adapter: Adapter) -> list[Problem]:
    found = generic.problems(adapter)
    if not any(problem.fatal for problem in found):
        found += shapes.problems(adapter)
    return found


def signature(adapter: Adapter) -> Signature:
    return shapes.signature(adapter, generic.signature(adapter))


def meaning(adapter: Adapter, *, base_is_initialised: bool = False) -> Meaning:
    return parts(adapter)


def parts(adapter: Adapter) -> Meaning:
    return complete(adapter, _own(adapter))


def _own(adapter: Adapter) -> Iterator[Delta]:
    vector, seed = adapter.modules[""][VECTOR], int(adapter.config["seed"])
    for module, parameter in shapes.changed(adapter):
        role = f"{parameter}.scale"
        shape = shapes.shape(adapter, module, parameter)
        name = f"{module}.{parameter}"
        value = _value(vector, adapter.modules[module][role], shape, seed, name)
        yield Delta(module, value, 1.0, (role,), parameter)


def _value(vector: Tensor, scale: Tensor, shape: tuple[int, ...], seed: int, name: str) -> Computed:
    def compute() -> Values:
        factor = fp32(scale).reshape(-1)
        if len(factor) != 1:
            raise InvalidAdapter(f"the scale of {name} is no single number", remedy=generic.REMEDY)
        found = fastfood.project(fp32(vector), math.prod(shape), seed, name)
        found *= factor[0]
        return found.reshape(shape)

    return Computed(shape, compute, (vector, scale))
