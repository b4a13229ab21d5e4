"""What of a fine-tuned checkpoint has factors, and what becomes of the rest: tensors kept whole."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

from adapterhub.adapter import REPLACE, Adapter
from adapterhub.composing.extracting.checkpoints import Checkpoints, Pair
from adapterhub.composing.run import Composed
from adapterhub.composing.window import Progress
from adapterhub.errors import NotMergeable
from adapterhub.formats.peft import TASKS, labels_of
from adapterhub.registry.fit import LABELLED
from adapterhub.tensorfile import Tensor

SAVE, REFUSE, DROP = "save", "refuse", "drop"
REST = (SAVE, REFUSE, DROP)
BIAS = f"{REPLACE}bias"
_LINEAR = ("Linear", "Conv1D", "Conv1d", "Conv2d", "Conv3d")


@dataclass(frozen=True)
class Wanted:
    """`targets`: ends of module paths, or patterns with `*`; () for every linear layer."""

    targets: tuple[str, ...] = ()
    rest: str = SAVE

    def takes(self, module: str) -> bool:
        """Whether one of the targets means it."""
        return any(
            f".{module}".endswith(f".{target}") or fnmatchcase(module, target)
            for target in self.targets
        )


def is_target(pair: Pair, wanted: Wanted) -> bool:
    """Whether it has a low rank if it changed: a linear layer or convolution of the bare model.

    A head or an embedding is one where it is named. An architecture that nobody knows has only the
    matrices that are named.
    """
    if pair.parameter != "weight" or pair.old is None or pair.expert or len(pair.new.shape) < 2:
        return False
    if wanted.targets and not wanted.takes(pair.module):
        return False
    if wanted.targets:
        return pair.kind in (None, *_LINEAR, "Embedding") and 0 not in pair.new.shape
    # a kernel for each channel has no rank to speak of, and PEFT's factors another shape
    depthwise = len(pair.shape) > 2 and pair.shape[1] == 1
    return pair.kind in _LINEAR and not pair.head and not depthwise


@dataclass(frozen=True)
class Rest:
    """`tensors`: (module, role) → what is saved whole. `changed`: how many tensors changed."""

    tensors: Mapping[tuple[str, str], Tensor]
    saved: tuple[str, ...]
    dropped: tuple[str, ...]
    changed: int
    heads: bool


@dataclass(frozen=True)
class Found:
    """An adapter of what changed, and what became of every tensor. `changed`: how many did.

    `composed`: of a LoRA. `elements`: of a sparse delta, and `error`: ‖Δ − kept‖ / ‖Δ‖.
    """

    adapter: Adapter
    saved: tuple[str, ...]
    dropped: tuple[str, ...]
    changed: int
    composed: tuple[Composed, ...] = ()
    elements: int | None = None
    error: float | None = None


def settle_rest(pairs: Sequence[Pair], wanted: Wanted, progress: Progress) -> Rest:
    """What becomes of tensors without factors. Raises NotMergeable, with all that is refused."""
    changed = []
    for pair in pairs:
        if pair.differs():
            changed.append(pair)
        progress(pair.nbytes)
    if wanted.rest == DROP:
        return Rest({}, (), tuple(sorted(pair.name for pair in changed)), len(changed), False)
    odd = [pair for pair in changed if wanted.rest != SAVE or not _can_be_saved(pair)]
    if odd:
        raise NotMergeable(
            f"{len(odd)} tensors changed and have no low rank"
            + ("" if wanted.rest != SAVE else ", and PEFT cannot save them whole"),
            details=sorted(_said(pair) for pair in odd),
            remedy="--rest drop leaves out whatever has no factors, and lists it"
            + ("" if wanted.rest == SAVE else "; --rest save keeps it whole"),
        )
    kept = _with_neighbours(changed, pairs)
    for pair in kept:
        pair.check_finite()
    return Rest(
        tensors={(pair.module, f"{REPLACE}{pair.parameter}"): pair.new for pair in kept},
        saved=tuple(sorted(pair.name for pair in kept)),
        dropped=(),
        changed=len(changed),
        heads=any(pair.head for pair in kept),
    )


def _can_be_saved(pair: Pair) -> bool:
    """Whether PEFT has a module for it, which it saves whole, or it is a bias."""
    return pair.parameter in ("weight", "bias") and not pair.expert and pair.module != ""


def _said(pair: Pair) -> str:
    what = "one of several experts in one parameter" if pair.expert else pair.kind or "unknown"
    return f"{pair.name} {list(pair.new.shape)} ({what})"


def _with_neighbours(changed: Sequence[Pair], pairs: Sequence[Pair]) -> list[Pair]:
    """With the bias of each weight that is saved, which PEFT saves and loads along with it."""
    whole = {pair.module for pair in changed if pair.parameter != "bias"}
    names = {pair.name for pair in changed}
    return [pair for pair in pairs if pair.name in names or pair.module in whole]


def saved_fields(saved: Iterable[tuple[str, str]]) -> dict[str, Any]:
    """`modules_to_save` and `bias` of PEFT's config for these (module, role).

    A bias that is saved by itself is one of `bias="all"`, which loads those that the file holds;
    other parameters need their whole module to be saved.
    """
    roles: dict[str, set[str]] = {}
    for module, role in saved:
        if role.startswith(REPLACE):
            roles.setdefault(module, set()).add(role)
    whole = sorted(module for module, found in roles.items() if found != {BIAS})
    return {
        "modules_to_save": whole or None,
        "bias": "all" if len(whole) < len(roles) else "none",
    }


def head_of(both: Checkpoints, rest: Rest) -> tuple[str | None, tuple[str, ...]]:
    """Task and labels of the fine-tuned model; those of a head only where the head is saved."""
    task = both.known.task if both.known else None
    said = task if task in TASKS else None  # PEFT has no word for images
    if task in LABELLED:
        return (said, labels_of(both.tuned.config)) if rest.heads else (None, ())
    return said, ()
