"""How large a LoRA is to become."""

from __future__ import annotations

from dataclasses import dataclass

from adapterhub.composing.factored import check_rank, check_share
from adapterhub.errors import InvalidOption


@dataclass(frozen=True)
class Sizing:
    """`rank`: at most so many singular values. `energy`: the fewest with this share of Σs².

    `uniform`: one rank for all modules, by the energy of all of them.
    """

    rank: int | None = None
    energy: float | None = None
    uniform: bool = False

    def __post_init__(self) -> None:
        if self.rank is None and self.energy is None:
            raise InvalidOption(
                "give a rank or a share of the energy",
                remedy="--rank 16, or --energy 0.99 (1 keeps all)",
            )
        check_rank(self.rank)
        check_share("energy", self.energy)
