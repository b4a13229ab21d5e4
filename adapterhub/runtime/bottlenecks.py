"""AdapterHub's bottlenecks on a live model: Houlsby, Pfeiffer, parallel, Compacter, SparseAdapter.

What a place's block gives is replaced by what its bottleneck makes of it, and the model adds its
residual and norms as ever. Several sequential adapters on one place so follow each other, as in
the library's `Stack`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

from adapterhub.adapter import REPLACE, Adapter
from adapterhub.errors import BaseMismatch, NotSupported
from adapterhub.runtime import invertible
from adapterhub.runtime.bottleneck import Bottleneck, activation, settings
from adapterhub.runtime.bottleneck_tensors import SHARED, built
from adapterhub.runtime.hooks import Hooks, Undo
from adapterhub.runtime.passing import Passing
from adapterhub.runtime.places import (
    Place,
    Places,
    base_path,
    layer_of,
    numbered,
    places_of,
    without_prefix,
)
from adapterhub.tensorfile import Tensor, shown

if TYPE_CHECKING:
    from transformers import PreTrainedModel

Modules = Mapping[str, Mapping[str, Tensor]]


def plan(model: PreTrainedModel, adapter: Adapter, weight: float) -> Hooks:
    """See `hooks.Hooked`."""
    refuse_weight(adapter, weight)
    refuse_heads(adapter)
    places = places_of(model)
    return planned(model, places, by_base_path(model, adapter), adapter.config)


def planned(
    model: PreTrainedModel, places: Places, modules: Modules, config: Mapping[str, Any]
) -> Hooks:
    """Hooks of the bottlenecks of `modules`, whose paths are those of the base model."""
    shared, own, coupling, lost = _sorted(modules, model.base_model_prefix)
    wanted, has = _places(model, places, config)
    if config.get("phm_layer") and config.get("shared_W_phm"):
        own = {**{place: {} for place in wanted}, **own}  # where nothing is a place's own
    found, wrong = _blocks(model, places, own, shared, config, has)
    wrong += [f"{shown(name)}: the model itself has it, no module" for name in lost]
    wrong += [
        f"{name}: the config asks for a bottleneck there" for name in sorted(wanted - set(own))
    ]
    there = {block.place.stored for block in found}
    wrong += [f"{name}: the config asks for none there" for name in sorted(there - wanted)]
    if wrong:
        raise misfit(model, wrong)
    hooks = Hooks()
    for block in found:
        hooks += block.hooks(model, base_path(model))
    return hooks + invertible.planned(model, places, coupling, config)


def misfit(model: PreTrainedModel, wrong: list[str]) -> BaseMismatch:
    return BaseMismatch(
        f"the adapter does not fit this {type(model).__name__}: {len(wrong)} findings",
        details=wrong[:40],
        remedy=invertible.CHECK,
    )


def refuse_weight(adapter: Adapter, weight: float) -> None:
    if weight != 1.0:
        raise NotSupported(
            f"{adapter.method} has no weight: {weight:g} was asked for, and only 1 is possible",
            remedy="attach it without a weight",
        )


def refuse_heads(adapter: Adapter) -> None:
    heads = [f"{m}.{r}" for m, r, _ in adapter.tensors() if r.startswith(REPLACE)]
    if heads:
        raise NotSupported(
            "the adapter brings a head of AdapterHub's own classes, which this model has no place "
            "for",
            details=heads[:20],
            remedy="attach it without: adapterhub.attach(model, REF, with_head=False)",
        )


def by_base_path(model: PreTrainedModel, adapter: Adapter) -> dict[str, Mapping[str, Tensor]]:
    return {without_prefix(model, m): roles for m, roles in adapter.modules.items()}


def _sorted(
    modules: Modules, prefix: str
) -> tuple[dict[str, Tensor], Modules, dict[str, Tensor], list[str]]:
    """What all share, the bottlenecks', and the invertible adapter's; and what of the first and
    last is not the base model's, called `prefix`."""
    shared: dict[str, Tensor] = {}
    coupling: dict[str, Tensor] = {}
    own: dict[str, dict[str, Tensor]] = {}
    lost = []
    for module, roles in modules.items():
        for role, tensor in roles.items():
            if role.startswith((SHARED, invertible.CONTAINER)) and module not in ("", prefix):
                lost.append(f"{module}.{role}")
            elif role.startswith(SHARED):
                shared[role] = tensor
            elif role.startswith(invertible.CONTAINER):
                coupling[role] = tensor
            else:
                own.setdefault(module, {})[role] = tensor
    return shared, own, coupling, lost


def _blocks(
    model: PreTrainedModel,
    places: Places,
    modules: Modules,
    shared: Mapping[str, Tensor],
    config: Mapping[str, Any],
    has: Mapping[str, int],
) -> tuple[list[_Block], list[str]]:
    """And what does not fit, sentence by sentence."""
    given, hidden = settings(config), int(model.config.hidden_size)
    activate = activation(given.non_linearity)
    found, wrong = [], []
    for module, roles in modules.items():
        place = _place(places, module)
        if place is None:
            wrong.append(f"{shown(module)}: this architecture has no place of that name")
            continue
        if module not in has:
            wrong.append(f"{module}: the model has no such layer")
            continue
        try:
            tensors = built(roles, shared, config, hidden, has[module])
        except BaseMismatch as error:
            wrong += [f"{shown(module)}: {detail}" for detail in error.details]
            continue
        found.append(_Block(place, Bottleneck(given, tensors, activate)))
    return found, wrong


def _place(places: Places, module: str) -> Place | None:
    for place in places.places:
        if (layer := layer_of(place.stored, module)) is not None:
            return place.at(layer)
    return None


def _places(
    model: PreTrainedModel, places: Places, config: Mapping[str, Any]
) -> tuple[set[str], dict[str, int]]:
    """Those that the config asks for, and all that the model has, by `stored`; with the numbers
    that the config has for their layers."""
    wanted: set[str] = set()
    has: dict[str, int] = {}
    left = set(config.get("leave_out") or ())
    by_pattern = {place.hidden: place for place in places.places}
    for pattern, layer, number in numbered(model, tuple(by_pattern)):
        place = by_pattern[pattern].at(str(layer))
        has[place.stored] = number
        if config.get(place.location) and number not in left:
            wanted.add(place.stored)
    return wanted, has


# --- one place --------------------------------------------------------------------------------


@dataclass
class _Block:
    """Between a pass's hooks, `residual` and `result` hold what the next of them needs."""

    place: Place
    bottleneck: Bottleneck
    residual: Passing = field(default_factory=Passing)
    result: Passing = field(default_factory=Passing)
    norm: Callable[[Any], Any] | None = None

    def hooks(self, model: PreTrainedModel, prefix: str) -> Hooks:
        place = self.place
        if place.norm:
            self.norm = model.get_submodule(prefix + place.norm)
        after = [(prefix + place.hidden, self.hidden)]
        if place.norm and self.bottleneck.leaves:
            after.append((prefix + place.norm, self.normed))
        alone = partial(_refuse_others, model, prefix + place.hidden)
        return Hooks(
            before=((prefix + place.residual.of, self.entered),),
            after=tuple(after),
            others=(alone,),
            nbytes=sum(t.nbytes for t in self.bottleneck.tensors.values()),
        )

    def entered(self, module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self.residual.put(self.place.residual.value(args, kwargs))
        self.result.take()  # of a pass that did not end

    def hidden(self, module: Any, args: Any, kwargs: Any, output: Any) -> Any:
        h = output[0] if isinstance(output, tuple) else output
        residual = self.residual.take()
        y = self.bottleneck(h, residual, self.norm)
        if self.bottleneck.leaves:
            if self.norm is None:
                y = y - residual  # which the model adds again
            else:
                self.result.put(y)
        return (y, *output[1:]) if isinstance(output, tuple) else y

    def normed(self, module: Any, args: Any, kwargs: Any, output: Any) -> Any:
        """The result in the norm's place; None where the bottleneck itself called the norm."""
        return self.result.take()


def _refuse_others(model: PreTrainedModel, path: str) -> Undo:
    """A bottleneck after which the model leaves its norm out stands alone on its place."""
    blocks = list(_on(model.get_submodule(path)._forward_hooks.values()))
    if len(blocks) > 1 and any(block.bottleneck.leaves for block in blocks):
        raise NotSupported(
            f"{path} has a bottleneck already, and one with original_ln_after: false stands alone",
            remedy="detach the other first",
        )
    return lambda: None


def _on(hooks: Iterable[Any]) -> Iterator[_Block]:
    for hook in hooks:
        owner = getattr(hook, "__self__", None)
        if isinstance(owner, _Block):
            yield owner
