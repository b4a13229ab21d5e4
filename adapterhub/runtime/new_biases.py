"""Biases for layers that have none: those of t-few's BitFit in a T5, and of LoRA (`lora_bias`).

They are added to what the layer gives. No checkpoint of such a model has a place for them, so that
they are attached and never merged.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

from adapterhub.errors import NotMergeable
from adapterhub.merging.work import Source
from adapterhub.methods import BiasDelta, Meaning, Part, Replacement
from adapterhub.runtime.arrays import torch_of
from adapterhub.runtime.bottlenecks import refuse_weight
from adapterhub.runtime.hooks import Hooks
from adapterhub.runtime.live import Live

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True, eq=False)
class AddedBias:
    """bias: (out,). `whole`: it is the layer's bias, and not a part that others may add to."""

    bias: torch.Tensor
    whole: bool

    def __call__(self, module: Any, args: Any, kwargs: Any, output: torch.Tensor) -> torch.Tensor:
        return output + self.bias.to(output.device, output.dtype)


def apart(live: Live, source: Source, meaning: Meaning) -> tuple[Hooks, Meaning]:
    """The new biases as hooks, and the rest. Raises NotSupported for a weight other than 1 of
    trained biases; what LoRA adds to a bias has one.
    """
    new: list[tuple[str, AddedBias]] = []
    rest: list[Part] = []
    for part in meaning:
        if isinstance(part, BiasDelta | Replacement) and _is_new(live, part):
            new.append((live.naming.stored(part.module), _added(source, part)))
        else:
            rest.append(part)
    nbytes = sum(added.bias.nbytes for _, added in new)
    return Hooks(after=tuple(new), nbytes=nbytes), tuple(rest)


def _added(source: Source, part: BiasDelta | Replacement) -> AddedBias:
    value = torch_of(part.value)
    if isinstance(part, BiasDelta):
        return AddedBias(value.float() * (part.scale * source.weight), whole=False)
    refuse_weight(source.adapter, source.weight)
    return AddedBias(value, whole=True)


def _is_new(live: Live, part: BiasDelta | Replacement) -> bool:
    """A Linear of this size that has no bias."""
    import torch

    path = live.naming.stored(part.module)
    parameter = part.parameter if isinstance(part, Replacement) else "bias"
    if parameter != "bias" or f"{path}.weight" not in live.held:
        return False
    module: Any = live.model.get_submodule(path)
    if not isinstance(module, torch.nn.Linear) or getattr(module, "bias", None) is not None:
        return False
    return part.value.shape == (module.out_features,)


def refuse_twice(hooks: Iterable[Hooks]) -> None:
    """Raises NotMergeable where an adapter's bias of a layer meets another's."""
    added = [pair for each in hooks for pair in each.after if isinstance(pair[1], AddedBias)]
    count = Counter(path for path, _ in added)
    twice = [path for path, do in added if count[path] > 1 and cast(AddedBias, do).whole]
    if twice:
        raise NotMergeable(
            f"several of the adapters give {twice[0]} a bias",
            details=sorted(set(twice))[:20],
            remedy="attach one of them",
        )
