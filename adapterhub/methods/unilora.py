"""Uni-LoRA: factors out of one trained vector (Li et al., https://arxiv.org/abs/2506.00799).

    ΔW = B · A      A = θ[indices_A] ⊙ scales_A: (r, in)      B = θ[indices_B] ⊙ scales_B: (out, r)

Without `save_indices` the files hold θ alone. PEFT then deals the indices out anew to all layers
that `target_modules` means, in the order of the model: each number of θ is in the deck as often as
any other, one more or less, and numpy shuffles it by `proj_seed`; a scale is 1/√n for a number that
is there n times. The base has to tell the layers. Products are rounded once. Roles:
unilora_indices_A, unilora_scales_A, unilora_indices_B, unilora_scales_B; shared unilora_theta_d.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from adapterhub.adapter import Adapter
from adapterhub.errors import NotMergeable
from adapterhub.methods.computed import Computed, fp32
from adapterhub.methods.generic import idle, problems, ranks, signature
from adapterhub.methods.meaning import LowRank, Meaning, Surroundings, Values
from adapterhub.methods.mergeable import Roles, Settings, adapted, complete, replacements
from adapterhub.methods.patterns import Clock, WholePattern
from adapterhub.methods.scattered import places
from adapterhub.tensorfile import Tensor

THETA = "unilora_theta_d"
BY_HAND = "merge it with peft: PeftModel.from_pretrained(…).merge_and_unload()"
Sides = tuple[int, int]
NEEDED = tuple(f"unilora_{what}_{letter}" for letter in "AB" for what in ("indices", "scales"))

__all__ = ["idle", "meaning", "meaning_over", "parts", "problems", "ranks", "signature"]


def meaning(adapter: Adapter, *, base_is_initialised: bool = False) -> Meaning:
    return complete(adapter, _own(adapter))


def meaning_over(adapter: Adapter, around: Surroundings) -> Meaning:
    """As `meaning`, with the base at hand, which tells what the files do not."""
    if any(adapted(adapter)):
        return meaning(adapter)
    return complete(adapter, _dealt(adapter, _targets(adapter, around)))


def parts(adapter: Adapter) -> Meaning:
    """None of the method's own where the files do not hold the places."""
    return (*(_own(adapter) if _is_placed(adapter) else ()), *replacements(adapter))


def _is_placed(adapter: Adapter) -> bool:
    found = list(adapted(adapter))
    return bool(found) and all(role in roles for _, roles in found for role in NEEDED)


def _own(adapter: Adapter) -> Iterator[LowRank]:
    if not _is_placed(adapter):
        raise NotMergeable(
            "Uni-LoRA was saved without the indices of its vector (save_indices), which hang on "
            "the order of the modules in the model",
            remedy="load it with peft, set save_indices to true in its config, and save it again",
        )
    theta = adapter.modules[""][THETA]
    for module, roles in adapted(adapter):
        a, b = (_gathered(module, roles, letter, theta) for letter in "AB")
        yield LowRank(module, a, b, 1.0, "linear", tuple(roles))


def _gathered(module: str, roles: Roles, letter: str, theta: Tensor) -> Computed:
    indices, scales = roles[f"unilora_indices_{letter}"], roles[f"unilora_scales_{letter}"]

    def compute() -> Values:
        values = fp32(theta)[places(module, indices.read(), theta.shape[0])]
        return np.multiply(values, fp32(scales), out=values)

    return Computed(indices.shape, compute, (theta, indices, scales))


# --- places that are not saved ----------------------------------------------------------------


def _dealt(adapter: Adapter, sides: Mapping[str, Sides]) -> Iterator[LowRank]:
    settings, theta = Settings(adapter), adapter.modules[""][THETA]
    rank = int(settings.get("r"))
    total = sum(rank * (out + into) for out, into in sides.values())
    deck = Deck(total, theta.shape[0], int(settings.get("proj_seed")))
    first = 0
    for module, (out, into) in sides.items():
        a = _of_deck(deck, first, (rank, into), theta)
        b = _of_deck(deck, first + rank * into, (out, rank), theta)
        first += rank * (out + into)
        yield LowRank(module, a, b, 1.0, "linear", (THETA,))


def _of_deck(deck: Deck, first: int, shape: Sides, theta: Tensor) -> Computed:
    def compute() -> Values:
        indices = deck.places[first : first + shape[0] * shape[1]]
        values = fp32(theta)[indices]
        return np.multiply(values, deck.scales[indices], out=values).reshape(shape)

    return Computed(shape, compute, (theta,), exact=False)  # another numpy may shuffle otherwise


@dataclass(frozen=True, eq=False)
class Deck:
    """Which of `count` numbers stands in each of `total` places."""

    total: int
    count: int
    seed: int

    @cached_property
    def places(self) -> NDArray[np.int32]:
        generator = np.random.default_rng(self.seed)
        each, more = divmod(self.total, self.count)
        deck = np.repeat(np.arange(self.count), each)
        if more:
            extra = generator.choice(self.count, size=more, replace=False)
            deck = np.concatenate([deck, extra])
        generator.shuffle(deck)
        return deck.astype(np.int32)

    @cached_property
    def scales(self) -> Values:
        """Of each number; 0 for one that is nowhere."""
        often = np.bincount(self.places, minlength=self.count).astype(np.float64)
        with np.errstate(divide="ignore"):
            return np.where(often, 1.0 / np.sqrt(often), 0.0).astype(np.float32)


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
            remedy=BY_HAND,
        )
    return {name: known[name] for name in found}


def _refuse_settings(adapter: Adapter) -> None:
    config = adapter.config
    if config.get("layers_to_transform") is not None or not config.get("target_modules"):
        raise NotMergeable(
            "this Uni-LoRA holds its numbers and not their places (save_indices), and which layers "
            "share them is not worked out from layers_to_transform, or without target_modules",
            remedy=BY_HAND,
        )


def _is_target(adapter: Adapter, module: str) -> bool:
    """As peft decides, whose names of modules_to_save are patterns: here they must be names."""
    saved = adapter.config.get("modules_to_save") or ()
    if any(f".{name}." in f".{module}." for name in saved):
        return False
    wanted = adapter.config["target_modules"]
    if isinstance(wanted, str):
        return WholePattern("target_modules", wanted, Clock()).count([module]) > 0
    return any(f".{module}".endswith(f".{name}") for name in wanted)
