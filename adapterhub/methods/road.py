"""RoAd: pairs of outputs rotated and scaled (Liao and Monz, https://arxiv.org/abs/2409.00119).

    W' = R · W,  b' = R · b      y₁ = c₁·x₁ − s₁·x₂      y₂ = c₂·x₂ + s₂·x₁

x₁ runs through the first half of a group of `group_size` outputs, x₂ through its second half, and
c = α·cos θ, s = α·sin θ. Each pair has one α and θ (variant road_1), each output (road_2), or each
output one for c and one for s (road_4, group by group). Cosines hang on the library.

Roles: road_theta, road_alpha: (out / 2), (out) or (2 · out).
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from adapterhub.adapter import Adapter
from adapterhub.errors import InvalidAdapter
from adapterhub.methods.computed import fp32
from adapterhub.methods.generic import idle, problems, ranks, signature
from adapterhub.methods.meaning import Meaning, Transform, Values
from adapterhub.methods.mergeable import Roles, Settings, adapted, complete, replacements
from adapterhub.tensorfile import Tensor, shown

__all__ = ["idle", "meaning", "parts", "problems", "ranks", "signature"]
PER_OUTPUT = {"road_1": 0.5, "road_2": 1.0, "road_4": 2.0}


def meaning(adapter: Adapter, *, base_is_initialised: bool = False) -> Meaning:
    return complete(adapter, _own(adapter))


def parts(adapter: Adapter) -> Meaning:
    return (*_own(adapter), *replacements(adapter))


def _own(adapter: Adapter) -> Iterator[Transform]:
    settings = Settings(adapter)
    variant, group = str(settings.get("variant")), int(settings.get("group_size"))
    if variant not in PER_OUTPUT:
        raise InvalidAdapter(
            f"adapter_config.json: variant is {variant!r}, expected one of {list(PER_OUTPUT)}",
            remedy="correct variant",
        )
    for module, roles in adapted(adapter):
        out = int(roles["road_theta"].shape[0] / PER_OUTPUT[variant])
        if group % 2 or out % group:
            raise InvalidAdapter(
                f"{shown(module)} has {out} outputs, which groups of {group} do not divide",
                remedy="correct group_size",
            )
        yield _rotation(module, roles, variant, group, out, bias=False)
        yield _rotation(module, roles, variant, group, out, bias=True)


def _rotation(
    module: str, roles: Roles, variant: str, group: int, out: int, *, bias: bool
) -> Transform:
    def apply(value: Values) -> Values:
        cosines, sines = _turns(roles, variant, group)
        halves = (-1, 2, group // 2, value.size // out)
        given, cosine, sine = value.reshape(halves), cosines[..., None], sines[..., None]
        made = given * cosine
        made[:, 0] -= given[:, 1] * sine[:, 0]
        made[:, 1] += given[:, 0] * sine[:, 1]
        return made.reshape(value.shape)

    if bias:
        return Transform(module, "bias", apply, (out,), tuple(roles), optional=True, exact=False)
    return Transform(module, "weight", apply, (out, None), tuple(roles), exact=False)


def _turns(roles: Roles, variant: str, group: int) -> tuple[Values, Values]:
    """(c, s), each (groups, 2, group / 2) in fp32."""
    theta, alpha = (_by_half(roles[role], variant, group) for role in ("road_theta", "road_alpha"))
    cosines = alpha[0].astype(np.float64) * np.cos(theta[0].astype(np.float64))
    sines = alpha[1].astype(np.float64) * np.sin(theta[1].astype(np.float64))
    return cosines.astype(np.float32), sines.astype(np.float32)


def _by_half(tensor: Tensor, variant: str, group: int) -> tuple[Values, Values]:
    """The values for c and those for s, each (groups, 2, group / 2)."""
    values = fp32(tensor)
    half = group // 2
    if variant == "road_4":
        both = values.reshape(-1, 2, 2, half)
        return both[:, 0], both[:, 1]
    if variant == "road_2":
        own = values.reshape(-1, 2, half)
        return own, own
    pairs = np.repeat(values.reshape(-1, 1, half), 2, axis=1)
    return pairs, pairs
