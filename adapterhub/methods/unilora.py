"""Uni-LoRA: factors whose entries are a few numbers (Li et al., https://arxiv.org/abs/2506.00799).

    ΔW = B·A      A = θ[indices_A] · scales_A : (r, in)      B = θ[indices_B] · scales_B : (out, r)

PEFT shuffles the places of all entries of all layers by one seed, and each scale is 1/√n where θ's
number stands n times. Adapters hold both where `save_indices` says so, and by default θ alone: then
they follow from the sizes of the base's layers and their order in the model. PEFT computes the rest
(see `through_peft`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property, partial

import numpy as np
from numpy.typing import NDArray

from adapterhub.adapter import Adapter
from adapterhub.errors import NotMergeable
from adapterhub.methods import peft_layer, through_peft
from adapterhub.methods.computed import Computed
from adapterhub.methods.generic import idle, problems, ranks, signature
from adapterhub.methods.meaning import Meaning, Surroundings, Transform, Values
from adapterhub.methods.mergeable import Settings, adapted, complete
from adapterhub.methods.patterns import Clock, WholePattern
from adapterhub.methods.through_peft import meaning, parts
from adapterhub.tensorfile import Tensor

__all__ = ["idle", "meaning", "meaning_over", "parts", "problems", "ranks", "signature"]
THETA = "unilora_theta_d"
_MOST = 1 << 24  # fp32 holds every whole number up to it
Sides = tuple[int, int]


def meaning_over(adapter: Adapter, around: Surroundings) -> Meaning:
    """As `meaning`, with the base at hand, which tells what the files do not."""
    if any(adapted(adapter)):
        return meaning(adapter)
    peft_layer.require()
    return complete(adapter, _own(adapter, _targets(adapter, around)))


def _own(adapter: Adapter, sides: Mapping[str, Sides]) -> Iterator[Transform]:
    settings = Settings(adapter)
    rank = int(settings.get("r"))
    total = sum(rank * (out + into) for out, into in sides.values())
    shuffle = Shuffle(total, int(settings.get("theta_d_length")), int(settings.get("proj_seed")))
    modules: dict[str, Mapping[str, Tensor]] = {"": adapter.modules[""]}
    first = 0
    for module, (out, into) in sides.items():
        modules[module] = _roles(shuffle, first, rank, (out, into))
        first += rank * (out + into)
    config = {**adapter.config, "save_indices": True}
    for part in through_peft.changes(replace(adapter, config=config, modules=modules)):
        yield replace(part, roles=(THETA,), shape=sides[part.module])


def _roles(shuffle: Shuffle, first: int, rank: int, sides: Sides) -> dict[str, Tensor]:
    out, into = sides
    shapes = {"A": (rank, into), "B": (out, rank)}
    starts = {"A": first, "B": first + rank * into}
    found: dict[str, Tensor] = {}
    for letter, shape in shapes.items():
        part = slice(starts[letter], starts[letter] + shape[0] * shape[1])
        indices = partial(shuffle.indices, part, shape)
        found[f"unilora_indices_{letter}"] = Computed(shape, indices, ())
        found[f"unilora_scales_{letter}"] = Computed(shape, partial(shuffle.scales, indices), ())
    return found


@dataclass(frozen=True, eq=False)
class Shuffle:
    """Which of `count` numbers stands in each of `total` places, as `seed` has it."""

    total: int
    count: int
    seed: int

    @cached_property
    def _places(self) -> NDArray[np.int32]:
        return peft_layer.unilora_places(self.total, self.count, self.seed)

    @cached_property
    def _often(self) -> NDArray[np.int64]:
        return np.bincount(self._places, minlength=self.count)

    def indices(self, part: slice, shape: tuple[int, int]) -> Values:
        """In fp32, which holds them exactly."""
        return self._places[part].astype(np.float32).reshape(shape)

    def scales(self, indices: Callable[[], Values]) -> Values:
        often = self._often[indices().astype(np.int64)]
        scales: Values = (1.0 / np.sqrt(often.astype(np.float64))).astype(np.float32)
        return scales


# --- which layers -----------------------------------------------------------------------------


def _targets(adapter: Adapter, around: Surroundings) -> dict[str, Sides]:
    """The layers in the order of the model, and their (out, in). Raises NotMergeable."""
    _refuse_settings(adapter)
    known = around.linears()
    names = [] if known is None else [name for name in known if _is_target(adapter, name)]
    found = around.ordered(names) if names else None
    if known is None or found is None:
        raise NotMergeable(
            "this Uni-LoRA holds its numbers and not their places (save_indices), which follow "
            "from the order of the layers that target_modules means, and of this base that is not "
            "known",
            remedy=through_peft.BY_HAND,
        )
    return {name: known[name] for name in found}


def _refuse_settings(adapter: Adapter) -> None:
    config = adapter.config
    if config.get("layers_to_transform") is not None or not config.get("target_modules"):
        raise NotMergeable(
            "this Uni-LoRA holds its numbers and not their places (save_indices), and which layers "
            "share them is not worked out from layers_to_transform, or without target_modules",
            remedy=through_peft.BY_HAND,
        )
    if int(Settings(adapter).get("theta_d_length")) > _MOST:
        raise NotMergeable(f"theta_d_length is beyond {_MOST}", remedy=through_peft.BY_HAND)


def _is_target(adapter: Adapter, module: str) -> bool:
    """As peft decides, whose names of modules_to_save are patterns: here they must be names."""
    saved = adapter.config.get("modules_to_save") or ()
    if any(f".{name}." in f".{module}." for name in saved):
        return False
    wanted = adapter.config["target_modules"]
    if isinstance(wanted, str):
        return WholePattern("target_modules", wanted, Clock()).count([module]) > 0
    return any(f".{module}".endswith(f".{name}") for name in wanted)
