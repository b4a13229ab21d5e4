"""What is attached to one model, and how it becomes something else: wholly, or not at all."""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeVar
from weakref import WeakKeyDictionary, ref

from adapterhub.errors import AlreadyExists, InvalidOption, NotSupported
from adapterhub.merging.work import Source, Term, Work
from adapterhub.runtime.changing import change
from adapterhub.runtime.guards import Dress, guard, refuse_copy, saving, unguard
from adapterhub.runtime.hooks import Undo, install
from adapterhub.runtime.live import Live
from adapterhub.runtime.originals import Originals
from adapterhub.runtime.planning import How, Planned, plan
from adapterhub.runtime.splitting import Parted, apply, join, nbytes, part, sources

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel


@dataclass(eq=False)
class Entry:
    """One attached adapter; `remove` takes its hooks off."""

    source: Source
    how: How = field(default_factory=How)
    remove: Undo | None = field(default=None)


_T = TypeVar("_T")
_NOTHING = Planned((), {}, (), ())
_states: WeakKeyDictionary[Any, State] = WeakKeyDictionary()


def state_of(model: PreTrainedModel) -> State:
    """The one state of this model."""
    return _states.setdefault(model, State(model))


class State:
    """`entries` in the order of a merge's adapters."""

    def __init__(self, model: PreTrainedModel) -> None:
        self._model = ref(model)
        self._now: tuple[tuple[Entry, ...], Planned] = (), _NOTHING
        self._originals: Originals | None = None
        self._parted: Parted = {}
        self.dress = Dress(model)
        self._seen: dict[str, tuple[torch.Tensor, int]] = {}  # as we left them
        self._saving = saving(model)
        self.lock = threading.RLock()

    @property
    def model(self) -> PreTrainedModel:
        found = self._model()
        if found is None:
            raise InvalidOption("the model is gone", remedy="keep it as long as it is attached to")
        return found

    @property
    def entries(self) -> tuple[Entry, ...]:
        return self._now[0]

    @property
    def planned(self) -> Planned:
        return self._now[1]

    @property
    def memory(self) -> int:
        """Bytes kept for the restore, of weights that are shared no more, and by hooks."""
        kept = (self._originals.nbytes if self._originals else 0) + nbytes(self._parted)
        return kept + sum(hooks.nbytes for hooks in self.planned.hooks)

    def restore_by(self, originals: Originals) -> Originals:
        """What is in use, or else this one. Raises NotSupported for another kind."""
        if self._originals is None or not self.entries:
            return originals
        if type(self._originals) is not type(originals):
            raise NotSupported(
                "other adapters are attached to this model with another way to restore it",
                remedy="give the same restore=… for all adapters of one model",
            )
        return self._originals

    def become(
        self,
        entries: Sequence[Entry],
        originals: Originals | None = None,
        *,
        discard: bool = True,
    ) -> None:
        """Have exactly these attached. Raises what planning and computing raise; then, and at any
        interrupt, the model is as it was before the call.

        `discard`: overwrite what others did meanwhile to the tensors that are changed back.
        """
        with self.lock:
            _refuse_twice(entries)
            if not self.entries:
                refuse_copy(self.model)
            kept = originals or self._originals
            if kept is None:
                return
            before, step = self._originals, None
            try:
                step = self._prepared(tuple(entries), kept, discard)
                self._originals = kept
                step.run()
                self._now, self._parted = (tuple(entries), step.new), step.parted
                self._settled(step.live)
            except BaseException:
                if step is None:
                    apply(self._parted)
                    raise
                self._now = _insist(step.roll_back)
                self._originals, self._parted = before, step.parted
                self._settled(step.live)
                raise
            kept.drop(step.gone)

    def _prepared(self, entries: tuple[Entry, ...], kept: Originals, discard: bool) -> _Step:
        """What is to be done, decided over the model with its own ties back in place."""
        strange = [] if discard else self.strangers(Live(self.model), self.planned.works)
        join(self._parted)
        live = Live(self.model, kept.values())
        sources, hows = [e.source for e in entries], [e.how for e in entries]
        step = _Step(self, live, plan(live, sources, kept, hows), entries, kept)
        _refuse_strangers({*step.changed, *step.gone, *self._parted} & {*strange})
        return step

    def _settled(self, live: Live) -> None:
        names = self.planned.works
        self._seen = {name: (live.held[name], _version(live.held[name])) for name in names}
        if self.entries:
            guard(self.model, [entry.source.name for entry in self.entries])
        else:
            unguard(self.model, self._saving)

    def strangers(self, live: Live, names: Iterable[str]) -> list[str]:
        """Those of `names` that others have changed or replaced since we did."""
        return [
            name
            for name in names
            if (seen := self._seen.get(name))
            and (live.held.get(name) is not seen[0] or _version(seen[0]) != seen[1])
        ]


def _refuse_strangers(found: Collection[str]) -> None:
    if found:
        raise NotSupported(
            f"{len(found)} tensors were changed by others since the adapter was attached, and "
            "the base's bits would overwrite that",
            details=sorted(found)[:20],
            remedy="detach(discard=True) gives the base's bits back all the same",
        )


class _Step:
    """From one set of adapters to another; `changed`: to be computed, `gone`: to be restored."""

    def __init__(
        self,
        state: State,
        live: Live,
        new: Planned,
        entries: tuple[Entry, ...],
        kept: Originals,
    ) -> None:
        self.live, self.new, self.entries, self.kept = live, new, entries, kept
        self.model, self.dress = state.model, state.dress
        self.was, self.old = state.entries, state.planned
        self.parted = self.parted_before = state._parted
        then, now = _told(self.old, self.was), _told(new, entries)
        same = {name for name in now if then.get(name) == now[name]}
        self.reused = {n: a for n, a in self.parted.items() if n in same & new.split}
        moved = (self.parted.keys() | new.split) - self.reused.keys()
        self.changed = [name for name in now if name not in same or name in moved]
        kept_on = {name for name in now if name not in new.split}
        self.gone = [name for name in then if name not in kept_on and name not in self.parted]
        self._done: list[Callable[[], None]] = []  # what undoes the hooks, in order

    def run(self) -> None:
        self.kept.keep(self.live, [name for name in self.changed if name not in self.new.split])
        self._restore(name for name in self.gone if name in self.new.split)
        self.parted = part(self.live, self.new.split, self.reused)
        apply(self.parted, self.live)
        self._compute(self.new, self.changed)
        self._restore(name for name in self.gone if name not in self.new.split)
        self._hook()
        self.dress.wear(self.new)

    def _restore(self, names: Iterable[str]) -> None:
        for name in names:
            self.kept.restore(self.live.held[name], name)

    def _compute(self, planned: Planned, names: Iterable[str]) -> None:
        works = {name: planned.works[name] for name in names}
        values = dict(self.kept.values())
        values |= sources(self.live, self.parted, values)
        change(works, values, self.live.held, planned.sources)

    def _hook(self) -> None:
        was, now = self.was, self.entries
        for entry in was:
            if entry not in now and entry.remove:
                entry.remove()
                self._done.append(self._again(entry))
                entry.remove = None
        for entry, hooks in zip(now, self.new.hooks, strict=True):
            if entry not in was and not hooks.empty:
                self._done.append(_off(entry))
                entry.remove = install(self.model, hooks)

    def _again(self, entry: Entry) -> Callable[[], None]:
        hooks = self.old.hooks[self.was.index(entry)]

        def reinstall() -> None:
            entry.remove = install(self.model, hooks)

        return reinstall

    def roll_back(self) -> tuple[tuple[Entry, ...], Planned]:
        """To where it started; where that cannot be computed again, to the bare model."""
        while self._done:
            self._done.pop()()
        self.dress.wear(self.old)
        join(self.parted, self.live)
        self.parted = self.parted_before
        placed = self.old.works.keys() - self.parted.keys()  # changed where they stand
        kept = self.kept.values()
        fresh = [name for name in self.changed if name not in placed and name in kept]
        self._restore(fresh)
        apply(self.parted, self.live)
        before = [name for name in dict.fromkeys((*self.changed, *self.gone)) if name in placed]
        try:
            self._compute(self.old, before)
        except Exception:
            self._bare()
            return (), _NOTHING
        self.kept.drop(fresh)
        return self.was, self.old

    def _bare(self) -> None:
        join(self.parted, self.live)
        self._restore(self.old.works.keys() - self.parted.keys())
        self.parted = {}
        for entry in self.was:
            _off(entry)()
        self.dress.wear(_NOTHING)


def _off(entry: Entry) -> Callable[[], None]:
    def remove() -> None:
        if entry.remove:
            entry.remove()
            entry.remove = None

    return remove


def _insist(undo: Callable[[], _T]) -> _T:
    """An impatient second Ctrl-C must not leave a model half changed."""
    while True:
        try:
            return undo()
        except KeyboardInterrupt:
            continue


def _told(planned: Planned, entries: Sequence[Entry]) -> Mapping[str, Any]:
    """What makes the value of each changed tensor: equal where it is the same."""
    return {name: _recipe(work, entries) for name, work in planned.works.items()}


def _recipe(work: Work, entries: Sequence[Entry]) -> Any:
    slabs = tuple(
        (slab.first, slab.transposed, id(entries[owner.source]), owner.key, _scale(owner))
        for slab in work.slabs
        for owner in slab.owners
    )
    return slabs, work.rows, work.value if work.replaces else None


def _scale(owner: Any) -> float | None:
    return float(owner.scale) if isinstance(owner, Term) else None


def _version(tensor: torch.Tensor) -> int:
    return -1 if tensor.is_inference() else tensor._version


def _refuse_twice(entries: Sequence[Entry]) -> None:
    seen: dict[Any, str] = {}
    for entry in entries:
        source = entry.source
        key = source.digest or id(source.adapter)
        names = {key, source.name}
        if names & seen.keys():
            raise AlreadyExists(
                f"{source.name} is attached to this model already",
                remedy="detach it first, or attach it once with another weight",
            )
        seen |= dict.fromkeys(names, source.name)
