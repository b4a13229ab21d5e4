"""Biases for layers that have none, as t-few's BitFit trains them in a T5: added to the output.

No checkpoint of such a model has a place for them, so that they are attached and never merged.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from adapterhub.errors import NotMergeable
from adapterhub.merging.work import Source
from adapterhub.methods import Meaning, Part, Replacement
from adapterhub.runtime.arrays import torch_of
from adapterhub.runtime.bottlenecks import refuse_weight
from adapterhub.runtime.hooks import Hooks
from adapterhub.runtime.live import Live

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True, eq=False)
class AddedBias:
    """bias: (out,)."""

    bias: torch.Tensor

    def __call__(self, module: Any, args: Any, kwargs: Any, output: torch.Tensor) -> torch.Tensor:
        return output + self.bias.to(output.device, output.dtype)


def apart(live: Live, source: Source, meaning: Meaning) -> tuple[Hooks, Meaning]:
    """The new biases as hooks, and the rest. Raises NotSupported for a weight other than 1."""
    new = [part for part in meaning if isinstance(part, Replacement) and _is_new(live, part)]
    if not new:
        return Hooks(), meaning
    refuse_weight(source.adapter, source.weight)
    after = [(live.naming.stored(part.module), AddedBias(torch_of(part.value))) for part in new]
    nbytes = sum(added.bias.nbytes for _, added in after)
    places = {(part.module, part.parameter) for part in new}
    return Hooks(after=tuple(after), nbytes=nbytes), tuple(
        part for part in meaning if _place(part) not in places
    )


def _place(part: Part) -> tuple[str, str | None]:
    return part.module, part.parameter if isinstance(part, Replacement) else None


def _is_new(live: Live, part: Replacement) -> bool:
    """A Linear of this size that has no bias."""
    import torch

    path = live.naming.stored(part.module)
    if part.parameter != "bias" or f"{path}.weight" not in live.held:
        return False
    module: Any = live.model.get_submodule(path)
    if not isinstance(module, torch.nn.Linear) or getattr(module, "bias", None) is not None:
        return False
    return part.value.shape == (module.out_features,)


def refuse_twice(hooks: Iterable[Hooks]) -> None:
    """Raises NotMergeable where two adapters give one layer a bias."""
    added = (path for each in hooks for path, do in each.after if isinstance(do, AddedBias))
    twice = [path for path, count in Counter(added).items() if count > 1]
    if twice:
        raise NotMergeable(
            f"several of the adapters give {twice[0]} a bias",
            details=twice[:20],
            remedy="attach one of them",
        )
