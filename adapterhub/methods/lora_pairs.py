"""Which factors of a LoRA adapter belong together, and to which parameter of which module.

PEFT wraps a module once for each parameter that `target_parameters` names, the one that the
module registered first innermost, and does not write their names into the keys:
`experts.base_layer.lora_A` is `gate_up_proj`'s, `experts.lora_A` is `down_proj`'s.
(peft 0.21.2, BaseTuner._inject_parameters)
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from adapterhub.adapter import Adapter
from adapterhub.errors import NotMergeable
from adapterhub.methods.meaning import Layout
from adapterhub.tensorfile import Tensor, shown

ROLES = (("lora_A", "lora_B"), ("lora_embedding_A", "lora_embedding_B"))
INNER = "base_layer."  # before the roles of a wrapper inside another
MAGNITUDE = "lora_magnitude_vector"
# The order in which transformers' experts register their parameters, whichever they have.
_REGISTERED = (
    *("gate_up_proj", "gate_up_proj_bias", "gate_proj", "up_proj", "down_proj", "down_proj_bias"),
    *("w1", "v1", "w2"),
)
_OF_ANY_LAYER = ("weight", "in_proj_weight")


@dataclass(frozen=True)
class Pair:
    """`key` is what rank_pattern and alpha_pattern see; `parameter` is None for module weights."""

    module: str
    roles: tuple[str, str]
    a: Tensor
    b: Tensor
    key: str
    parameter: str | None = None

    @property
    def layout(self) -> Layout:
        if self.parameter is not None:
            return "experts"
        return "embedding" if self.roles == ROLES[1] else "linear"


def pairs(adapter: Adapter) -> Iterator[Pair]:
    """Every pair whose shapes fit each other and whose parameter is certain."""
    for module, roles in adapter.modules.items():
        levels = _levels(roles)
        names = parameters(adapter.config, module)
        if names and len(levels) != len(names):
            continue  # `refuse_uncertain` says so
        for number, (a, b) in enumerate(levels):
            if not fit(roles[a].shape, roles[b].shape):
                continue
            if names:
                key = f"{module}.{names[number]}"
                yield Pair(module, (a, b), roles[a], roles[b], key, names[number])
            elif not a.startswith(INNER):
                yield Pair(module, (a, b), roles[a], roles[b], module)


def _levels(roles: Mapping[str, Tensor]) -> list[tuple[str, str]]:
    """The pairs of one module, from the inside."""
    depth = max((role.count(INNER) for role in roles), default=0)
    return [
        (INNER * level + a, INNER * level + b)
        for level in range(depth, -1, -1)
        for a, b in ROLES
        if INNER * level + a in roles and INNER * level + b in roles
    ]


def parameters(config: Mapping[str, Any], module: str) -> tuple[str, ...]:
    """The parameters of `module` that the config targets, in the order in which PEFT wraps them.

    PEFT matches a target against the end of `<module>.<parameter>`. One without a module could be
    anybody's, and is where nothing but parameters is trained; else it is taken for the experts'.
    """
    elsewhere = "experts" if config.get("target_modules") else module
    found = set()
    for target in config.get("target_parameters") or ():
        owner, _, name = str(target).rpartition(".")
        if f".{module}".endswith(f".{owner or elsewhere}"):
            found.add(name)
    return tuple(sorted(found, key=_registered))


def _registered(name: str) -> int:
    return _REGISTERED.index(name) if name in _REGISTERED else -1


def refuse_uncertain(adapter: Adapter) -> None:
    """Raises NotMergeable for wrappers whose parameters the config does not tell with certainty."""
    named = set(_OF_ANY_LAYER) & {*(adapter.config.get("target_parameters") or ())}
    if named and adapter.config.get("target_modules"):
        raise NotMergeable(
            f"target_parameters names {_listed(sorted(named))} without a module, beside "
            "target_modules: which pair is a parameter's is not certain",
            remedy="write the module before it, as in experts.weight",
        )
    for module, roles in adapter.modules.items():
        levels, names = _levels(roles), parameters(adapter.config, module)
        unordered = [name for name in names if name not in _REGISTERED]
        nested = len(levels) > 1 or any(a.startswith(INNER) for a, _ in levels)
        if (nested and len(levels) != len(names)) or (len(names) > 1 and unordered):
            raise NotMergeable(
                f"{shown(module)} has {len(levels)} pairs of factors, and target_parameters tells "
                f"{_listed(names)} of it: which pair is whose is not certain",
                remedy=f"load it with peft; known of experts are {', '.join(_REGISTERED)}",
            )
        if names and levels and len(levels) != len(names):
            raise NotMergeable(
                f"{shown(module)} has {len(levels)} pair of factors, and target_parameters tells "
                f"{_listed(names)} of it: which one was trained is not certain",
                remedy="remove from target_parameters what the model does not have",
            )


def _listed(names: Sequence[str]) -> str:
    return " and ".join(names) if names else "no parameter"


def fit(a: tuple[int, ...], b: tuple[int, ...]) -> bool:
    """Whether these are (rank, in …) and (out, rank …)."""
    return len(a) >= 2 and len(b) >= 2 and a[0] == b[1] and a[0] > 0
