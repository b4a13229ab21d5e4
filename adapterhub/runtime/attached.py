"""Adapters on a model in memory, and off it again, bit for bit.

    attached = attach(model, [source])
    …
    attached.switch("another-task")
    attached.detach()

What merges goes into the weights, by the merge's own arithmetic and always from the original bits,
so that a model with adapters A and B is the merge of A and B, whatever was attached or detached in
between. What does not merge runs beside the weights, as hooks.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from types import TracebackType
from typing import TYPE_CHECKING

from adapterhub.base import Base
from adapterhub.errors import InvalidOption, NotSupported
from adapterhub.merging.work import Fate, Source
from adapterhub.runtime.live import Live, bare
from adapterhub.runtime.originals import InFiles, InMemory, Originals
from adapterhub.runtime.planning import How
from adapterhub.runtime.state import Entry, State, state_of

if TYPE_CHECKING:
    from transformers import PreTrainedModel

RESTORE = ("memory", "base")
Find = Callable[[object, float], Source]


def attach(
    model: PreTrainedModel,
    sources: Sequence[Source],
    *,
    base: Base | None = None,
    find: Find | None = None,
    how: How | None = None,
) -> Attached:
    """Attach these adapters behind those that are attached already.

    `base`: where the original bits are read again at detach; None keeps them in memory instead.
    `find` makes a Source of what `Attached.switch` is given. `how`: the same for all. Raises
    BaseMismatch with all that does not fit, NotMergeable, NotSupported, AlreadyExists; the model is
    then as it was.
    """
    if not sources:
        raise InvalidOption("no adapter was given", remedy="name at least one adapter")
    model = bare(model)
    state = state_of(model)
    wanted: Originals = InFiles(base) if base is not None else InMemory()
    with state.lock:
        entries = [Entry(source, how or How()) for source in sources]
        state.become([*state.entries, *entries], state.restore_by(wanted))
        return Attached(model, state, entries, find)


class Attached:
    """Adapters on a model, until `detach` or the end of its `with`.

    Handles of one model may be detached in any order. `model.save_pretrained` is refused while
    any is attached. `model.train()`, `.eval()` and `.to(device)` may be called at any time.
    """

    def __init__(
        self, model: PreTrainedModel, state: State, entries: list[Entry], find: Find | None
    ) -> None:
        self.model = model
        self._state = state
        self._entries = entries
        self._find = find

    @property
    def active(self) -> bool:
        """False once it is detached."""
        return bool(self._entries) and all(e in self._state.entries for e in self._entries)

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(entry.source.name for entry in self._entries)

    @property
    def weights(self) -> tuple[float, ...]:
        return tuple(entry.source.weight for entry in self._entries)

    @property
    def memory(self) -> int:
        """Bytes that all adapters of this model together take beyond the model: the original bits
        of every changed tensor (none with `restore="base"`), and tensors beside the weights."""
        return self._state.memory

    @property
    def fates(self) -> tuple[Fate, ...]:
        """What became of each tensor of these adapters; `source` counts within `names`."""
        state = self._state
        places = {state.entries.index(e): n for n, e in enumerate(self._entries) if self.active}
        return tuple(
            Fate(places[fate.source], fate.tensor, fate.fate)
            for fate in state.planned.fates
            if fate.source in places
        )

    def detach(self, *, discard: bool = False) -> None:
        """Give the original bits back; other adapters of the model stay. Again: does nothing.

        Raises NotSupported, having done nothing, where others have changed the same tensors since
        (an optimiser's step); `discard` overwrites that.
        """
        with self._state.lock:
            if self.active:
                rest = [entry for entry in self._state.entries if entry not in self._entries]
                self._state.become(rest, discard=discard)
            self._entries = []

    def switch(self, ref: object, weight: float = 1.0) -> None:
        """Another adapter in the place of these. Touches only tensors whose values differ.

        `ref`: a ref or path, or a Source. Raises as `attach` does, and then nothing has changed.
        """
        if not self.active:
            raise InvalidOption("nothing is attached any more", remedy="attach again")
        if isinstance(ref, Source):
            source = ref
        elif self._find is not None:
            source = self._find(ref, weight)
        else:
            raise InvalidOption(f"{ref!r} is no Source", remedy="use adapterhub.attach for refs")
        with self._state.lock:
            entries, new = list(self._state.entries), Entry(source, self._entries[0].how)
            place = entries.index(self._entries[0])
            entries[place] = new
            kept = [e for e in entries if e is new or e not in self._entries]
            self._state.become(kept, discard=False)
            self._entries = [new]

    def __enter__(self) -> Attached:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """The original bits are back in any case; raises if that discarded changes by others."""
        lost = self._lost()
        self.detach(discard=True)
        if lost and error is None:
            raise NotSupported(
                f"{len(lost)} tensors were changed by others while the adapter was attached; that "
                "is lost, since the base's bits are back",
                details=sorted(lost)[:20],
                remedy="train without attached adapters, or on a merged model",
            )

    def _lost(self) -> list[str]:
        works = self._state.planned.works if self.active else {}
        return self._state.strangers(Live(self.model), works)
