"""What another library changes in a model's structure, found by comparing before and after."""

from __future__ import annotations

from collections.abc import MutableMapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_HELD = ("_modules", "_parameters", "_buffers")
_GONE = object()
_Change = tuple[MutableMapping[str, Any], str, Any]


class Difference:
    """Attributes, submodules and parameters of every module, the config, and gradient flags.

    Values of parameters are not compared: nobody writes to them here. `undo` gives back what was
    changed between the making and `note` (or now), and leaves alone what others changed later.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        self._model = model
        self._before = [(d, dict(d)) for d in _dicts(model)]
        self._flags = [(p, p.requires_grad) for p in model.parameters()]
        self._changes: list[_Change] | None = None

    def note(self) -> None:
        self._changes = [
            (held, name, before.get(name, _GONE))
            for held, before in self._before
            for name in {*held, *before}
            if held.get(name, _GONE) is not before.get(name, _GONE)
        ]

    def undo(self) -> None:
        if self._changes is None:
            self.note()
        for held, name, value in self._changes or ():
            if value is _GONE:
                held.pop(name, None)
            else:
                held[name] = value
        for held, before in self._before:  # put back at the end; the order is that of a pass
            if list(held) != list(before) and held.keys() == before.keys():
                ordered = {name: held[name] for name in before}
                held.clear()
                held.update(ordered)
        for parameter, flag in self._flags:
            parameter.requires_grad_(flag)


def _dicts(model: PreTrainedModel) -> list[MutableMapping[str, Any]]:
    found: list[MutableMapping[str, Any]] = [model.config.__dict__]
    for module in model.modules():
        found.append(module.__dict__)
        found += [module.__dict__[name] for name in _HELD]
    return found
