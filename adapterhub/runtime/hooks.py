"""What methods do to a live model's forward passes where they have no weight to go into.

A hooked method is a module of this room with a function `plan`, named in `HOOKED`; it checks
everything and builds its tensors, but leaves the model as it is. `install` then does all of it or
nothing, and gives back what undoes it.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, cast

from adapterhub.adapter import Adapter
from adapterhub.errors import BaseMismatch

if TYPE_CHECKING:
    from transformers import PreTrainedModel

# (module, args, kwargs) → new (args, kwargs), or None where nothing changes.
Before = Callable[[Any, tuple[Any, ...], dict[str, Any]], tuple[Any, dict[str, Any]] | None]
# (module, args, kwargs, output) → the new output, or None where nothing changes.
After = Callable[[Any, tuple[Any, ...], dict[str, Any], Any], Any]
Undo = Callable[[], None]


@dataclass(frozen=True)
class Hooks:
    """All that one adapter does beside the weights of one model.

    `before`, `after`: pairs of a module's path in the model ("" is the model itself) and what runs
    before or after its forward pass. `others`: what needs more than that; each is called once,
    changes something and gives what undoes exactly that. `nbytes`: the memory of the tensors that
    the hooks hold.

    Several adapters' hooks on one module run in the order in which they were attached. Tensors
    follow the device and dtype of what they meet in the pass, so that `model.to` needs no notice.
    What torch.compile has made is made anew.
    """

    before: tuple[tuple[str, Before], ...] = ()
    after: tuple[tuple[str, After], ...] = ()
    others: tuple[Callable[[], Undo], ...] = ()
    nbytes: int = 0

    def __add__(self, other: Hooks) -> Hooks:
        return Hooks(
            self.before + other.before,
            self.after + other.after,
            self.others + other.others,
            self.nbytes + other.nbytes,
        )

    @property
    def empty(self) -> bool:
        return not (self.before or self.after or self.others)


class Hooked(Protocol):
    """A method that attaches by hooks."""

    def plan(self, model: PreTrainedModel, adapter: Adapter, weight: float) -> Hooks:
        """What attaching does. Changes nothing yet.

        Raises BaseMismatch, with everything that does not fit in its details; NotSupported for
        what cannot be attached, such as a weight other than 1 where nothing scales.
        """


# Method → the module of this room whose `plan` attaches it.
HOOKED: Mapping[str, str] = {
    "adamix": "adamix",
    "bottleneck": "bottlenecks",
    "compacter": "bottlenecks",
    "ladder_side": "ladder_side",
    "sparse_adapter": "bottlenecks",
    "prefix_tuning": "prompts",
    "prompt_tuning": "prompts",
    "p_tuning": "prompts",
    "multitask_prompt_tuning": "prompts",
    "mam": "unions",
    "unipelt": "unions",
}


def hooked(method: str) -> Hooked | None:
    """What attaches this method by hooks; None if none does."""
    name = HOOKED.get(method)
    if name is None:
        return None
    return cast(Hooked, importlib.import_module(f"adapterhub.runtime.{name}"))


def install(model: PreTrainedModel, hooks: Hooks) -> Undo:
    """Do all of it, or nothing if anything fails. The result undoes it and may be called once."""
    undoing = ExitStack()
    try:
        for path, before in hooks.before:
            handle = _module(model, path).register_forward_pre_hook(before, with_kwargs=True)
            undoing.callback(handle.remove)
        for path, after in hooks.after:
            handle = _module(model, path).register_forward_hook(after, with_kwargs=True)
            undoing.callback(handle.remove)
        for other in hooks.others:
            undoing.callback(other())
    except BaseException:
        undoing.close()
        raise
    undoing.callback(_forget_compiled)
    _forget_compiled()
    return undoing.close


def _forget_compiled() -> None:
    """What torch.compile has made does not look whether hooks have come or gone since."""
    if "torch._dynamo" in sys.modules:
        import torch

        torch.compiler.reset()


def _module(model: PreTrainedModel, path: str) -> Any:
    try:
        return model.get_submodule(path)
    except AttributeError as error:
        raise BaseMismatch(
            f"this {type(model).__name__} has no module {path}",
            remedy="check that this is the model that the adapter was trained on",
        ) from error
