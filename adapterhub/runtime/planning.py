"""What attaching adapters does to a model: which tensors become what, and which modules are hooked.

Decided by the merge's own planner over the tensors in memory, so that an attached model has the
bits of the merged checkpoint. Nothing is changed here.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from adapterhub.adapter import REPLACE, Adapter
from adapterhub.errors import BaseMismatch
from adapterhub.kernels.floatmode import default_float_mode
from adapterhub.merging.draft import Draft
from adapterhub.merging.quantised import refuse_dtype
from adapterhub.merging.work import Fate, Options, Source, Work
from adapterhub.methods import Meaning, Part, Replacement, method
from adapterhub.methods.meaning import roles_of
from adapterhub.methods.mergeable import replacements
from adapterhub.registry.around import meaning_of
from adapterhub.registry.fit import mismatch, wrong_ranks
from adapterhub.registry.tied import spread
from adapterhub.runtime import new_biases, quantised
from adapterhub.runtime.around import Kept, LiveAround, NothingKept
from adapterhub.runtime.heads import heads_of, without
from adapterhub.runtime.hooks import Hooks, hooked
from adapterhub.runtime.live import Live, refuse_model
from adapterhub.runtime.resizing import tokens_of
from adapterhub.runtime.splitting import untied


@dataclass(frozen=True)
class Planned:
    """`works`: by the first name of each tensor in the model. `hooks`: one for each adapter.

    `split`: those of `works` that share a weight with others, and need one of their own.
    """

    sources: tuple[Source, ...]
    works: Mapping[str, Work]
    hooks: tuple[Hooks, ...]
    fates: tuple[Fate, ...]
    split: frozenset[str] = frozenset()


@dataclass(frozen=True)
class How:
    """What is wished of one adapter.

    `with_head` False leaves out the head that it brings. `base_is_initialised`: the model is the
    one that PiSSA and the like have changed.
    """

    with_head: bool = True
    base_is_initialised: bool = False


@dataclass(frozen=True)
class _Asked:
    """What goes beside the weights, what goes into them, and what is said of the former."""

    hooks: Hooks
    meaning: Meaning
    beside: tuple[tuple[str, str], ...] = ()


@default_float_mode()  # for the coefficients
def plan(
    live: Live,
    sources: Sequence[Source],
    kept: Kept | None = None,
    hows: Sequence[How] | None = None,
) -> Planned:
    """Raises BaseMismatch with all that does not fit, NotMergeable, NotSupported.

    `kept` has the originals, once the plan is carried out, of all that it changes. `hows`: one for
    each of the sources.
    """
    refuse_model(live.model)
    hows = [How() for _ in sources] if hows is None else hows
    around = LiveAround(live.naming, live, kept or NothingKept())
    heads = [
        () if how.with_head else heads_of(live, source.adapter)
        for source, how in zip(sources, hows, strict=True)
    ]
    sources = [without(*pair) for pair in zip(sources, heads, strict=True)]
    asked = [_asked(live, *pair, around) for pair in zip(sources, hows, strict=True)]
    new_biases.refuse_twice(each.hooks for each in asked)
    meanings = [each.meaning for each in asked]
    _refuse_misfits(live, sources, meanings)
    draft = _drafted(live, sources, meanings, around)
    works, split = untied(live, draft.changed())
    for name, work in works.items():
        if work.slabs:
            refuse_dtype(name, live.tensors[name].dtype, live.base)
    _refuse_half_heads(live, works)
    fates = (*draft.fates(), *_beside(asked), *_idle(sources), *_left_out(heads))
    hooks = tuple(each.hooks for each in asked)
    return Planned(tuple(sources), works, hooks, fates, split)


def _asked(live: Live, source: Source, how: How, around: LiveAround) -> _Asked:
    adapter = source.adapter
    known = hooked(adapter.method)
    if known is not None:
        alone, heads = _apart(adapter)
        idle = {(m, r) for m, r, _ in method(adapter.method).implementation.idle(adapter)}
        used = tuple((m, r) for m, r, _ in alone.tensors() if (m, r) not in idle)
        return _Asked(known.plan(live.model, alone, source.weight), heads, used)
    found = meaning_of(adapter, lambda: around, base_is_initialised=how.base_is_initialised)
    added, rest = new_biases.apart(live, source, found)
    hooks, rest = quantised.plan(live, source, rest)
    beside = [part for part in found if not any(part is other for other in rest)]
    places = tuple((part.module, role) for part in beside for role in roles_of(part))
    return _Asked(added + hooks, rest, places)


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


def _beside(asked: Sequence[_Asked]) -> Iterator[Fate]:
    for number, each in enumerate(asked):
        for module, role in each.beside:
            yield Fate(number, f"{module}.{role}" if module else role, "runs beside the weights")


def _left_out(heads: Sequence[Sequence[tuple[str, str]]]) -> Iterator[Fate]:
    for number, places in enumerate(heads):
        for module, role in places:
            yield Fate(number, f"{module}.{role}", "unused: with_head=False")


def _drafted(
    live: Live, sources: Sequence[Source], meanings: Sequence[Meaning], around: LiveAround
) -> Draft:
    draft = Draft(live.naming, sources, Options(), around)
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
            remedy=_remedy(live, [part for meaning in meanings for part in meaning]),
        )


def _remedy(live: Live, parts: Sequence[Part]) -> str:
    """By what the whole tensors among the parts tell."""
    tokens = tokens_of(live, tuple(parts))
    if tokens is not None:
        return (
            f"the adapter was trained with {tokens} tokens: "
            f"model.resize_token_embeddings({tokens}), then attach again"
        )
    whole = [part for part in parts if isinstance(part, Replacement)]
    base = "check that this is the base it was trained on: adapterhub show REF"
    if any(_name(live, part) not in live.held for part in whole):
        return f"{base}; or leave its head out: attach(model, REF, with_head=False)"
    return base


def _name(live: Live, part: Replacement) -> str:
    return f"{live.naming.stored(part.module)}.{part.parameter}"


def _misfits(live: Live, source: Source, meaning: Meaning) -> Iterator[str]:
    naming, config = live.naming, source.adapter.config
    for part in meaning:
        if sentence := mismatch(naming, part, config):
            yield sentence
        elif isinstance(part, Replacement) and _name(live, part) not in live.held:
            yield f"{part.module}.{part.parameter}: the model has no such parameter"
    yield from wrong_ranks(naming, source.adapter, meaning)


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
