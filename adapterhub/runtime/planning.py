"""What attaching adapters does to a model: which tensors become what, and which modules are hooked.

Decided by the merge's own planner over the tensors in memory, so that an attached model has the
bits of the merged checkpoint. Nothing is changed here.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations

from adapterhub.adapter import REPLACE, Adapter
from adapterhub.errors import BaseMismatch, NotMergeable
from adapterhub.kernels.floatmode import default_float_mode
from adapterhub.merging.draft import Draft
from adapterhub.merging.quantised import refuse_dtype
from adapterhub.merging.ties import differ
from adapterhub.merging.work import Fate, Options, Source, Work
from adapterhub.methods import Meaning, Replacement, method
from adapterhub.methods.mergeable import replacements
from adapterhub.registry.fit import mismatch, wrong_ranks
from adapterhub.registry.tied import spread
from adapterhub.runtime import new_biases, quantised
from adapterhub.runtime.hooks import Hooks, hooked
from adapterhub.runtime.live import Live, refuse_model


@dataclass(frozen=True)
class Planned:
    """`works`: by the first name of each tensor in the model. `hooks`: one for each adapter."""

    sources: tuple[Source, ...]
    works: Mapping[str, Work]
    hooks: tuple[Hooks, ...]
    fates: tuple[Fate, ...]


@default_float_mode()  # for the coefficients
def plan(live: Live, sources: Sequence[Source], *, base_is_initialised: bool = False) -> Planned:
    """Raises BaseMismatch with all that does not fit, NotMergeable, NotSupported."""
    refuse_model(live.model)
    options = Options(base_is_initialised=base_is_initialised)
    asked = [_asked(live, source, options) for source in sources]
    new_biases.refuse_twice(hooks for hooks, _ in asked)
    meanings = [meaning for _, meaning in asked]
    _refuse_misfits(live, sources, meanings)
    draft = _drafted(live, sources, meanings, options)
    works = _untied(live, draft.changed())
    for name, work in works.items():
        if work.slabs:
            refuse_dtype(name, live.tensors[name].dtype, live.base)
    _refuse_half_heads(live, works)
    fates = (*draft.fates(), *_idle(sources))
    return Planned(tuple(sources), works, tuple(hooks for hooks, _ in asked), fates)


def _asked(live: Live, source: Source, options: Options) -> tuple[Hooks, Meaning]:
    """What goes beside the weights, and what goes into them."""
    known = hooked(source.adapter.method)
    if known is not None:
        beside, heads = _apart(source.adapter)
        return known.plan(live.model, beside, source.weight), heads
    found = method(source.adapter.method).implementation.meaning(
        source.adapter, base_is_initialised=options.base_is_initialised
    )
    added, rest = new_biases.apart(live, source, found)
    hooks, rest = quantised.plan(live, source, rest)
    return added + hooks, rest


def _apart(adapter: Adapter) -> tuple[Adapter, Meaning]:
    """What a hooked method does itself, and the whole tensors of the model that came along.

    Those of PEFT's prompts are put there by PEFT; AdapterHub's heads are none of the model's.
    """
    if adapter.format not in ("native", "adamix"):
        return adapter, ()
    own = {
        module: {role: tensor for role, tensor in roles.items() if not role.startswith(REPLACE)}
        for module, roles in adapter.modules.items()
    }
    modules = {module: roles for module, roles in own.items() if roles}
    return replace(adapter, modules=modules), tuple(replacements(adapter))


def _drafted(
    live: Live, sources: Sequence[Source], meanings: Sequence[Meaning], options: Options
) -> Draft:
    draft = Draft(live.naming, sources, options)
    for number, meaning in enumerate(meanings):
        adapter = sources[number].adapter
        for part in meaning:
            draft.add(number, part)
        for part in spread(live.naming, adapter, meaning, live.naming.result, draft.same):
            draft.add_spread(number, part)
    draft.refuse_conflicts()
    return draft


def _idle(sources: Sequence[Source]) -> Iterator[Fate]:
    for number, source in enumerate(sources):
        implementation = method(source.adapter.method).implementation
        for module, role, why in implementation.idle(source.adapter):
            yield Fate(number, f"{module}.{role}", f"unused: {why}")


def _refuse_misfits(live: Live, sources: Sequence[Source], meanings: Sequence[Meaning]) -> None:
    found = []
    for source, meaning in zip(sources, meanings, strict=True):
        whose = f"{source.name}: " if len(sources) > 1 else ""
        found += [f"{whose}{sentence}" for sentence in _misfits(live, source, meaning)]
    if found:
        count = f"{len(found)} mismatch{'es' if len(found) > 1 else ''}"
        names = ", ".join(source.name for source in sources)
        raise BaseMismatch(
            f"{names} does not fit this {type(live.model).__name__}: {count}",
            details=found,
            remedy="check that this is the base it was trained on: adapterhub show REF",
        )


def _misfits(live: Live, source: Source, meaning: Meaning) -> Iterator[str]:
    naming, config = live.naming, source.adapter.config
    for part in meaning:
        if sentence := mismatch(naming, part, config):
            yield sentence
        elif isinstance(part, Replacement):
            name = f"{naming.stored(part.module)}.{part.parameter}"
            if name not in live.held:
                yield f"{part.module}.{part.parameter}: the model has no such parameter"
    yield from wrong_ranks(naming, source.adapter, meaning)


def _untied(live: Live, works: Mapping[str, Work]) -> dict[str, Work]:
    """Those of the first names. Raises NotMergeable where two names of a weight would differ."""
    found = dict(works)
    for group in live.groups:
        here = [works[name] for name in group if name in works]
        if not here:
            continue
        if len(here) < len(group) or any(differ(a, b) for a, b in combinations(here, 2)):
            raise NotMergeable(
                f"{here[0].name} is tied: {' and '.join(group)} share one weight, which the "
                "adapter changes under one name only",
                remedy="adapterhub merge BASE ADAPTER --out DIR unties them; then load DIR",
            )
        for name in group[1:]:
            del found[name]
    return found


def _refuse_half_heads(live: Live, works: Mapping[str, Work]) -> None:
    """A head of another number of labels comes with all of its tensors."""
    for name, work in works.items():
        if work.shape == live.tensors[name].shape:
            continue
        module = name.rpartition(".")[0]
        rows = {
            other: (works[other].shape if other in works else tensor.shape)[:1]
            for other, tensor in live.tensors.items()
            if other.rpartition(".")[0] == module
        }
        if set(rows.values()) != {work.shape[:1]}:
            raise BaseMismatch(
                f"the adapter's {name} is for {work.shape[0]} labels, the model has "
                f"{live.tensors[name].shape[0]}",
                details=sorted(other for other, size in rows.items() if size != work.shape[:1]),
                remedy="train with modules_to_save naming the whole head",
            )
