"""Tensors that adapters save whole (heads, trained biases, rows of tokens): which one remains.

They do not add up. One that a single adapter has, or that all who have it hold with the same bytes,
is taken as it is; for others somebody has to say what is wanted.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from adapterhub.adapter import REPLACE
from adapterhub.composing.factored import Matrix
from adapterhub.composing.inputs import Input, cancels
from adapterhub.errors import NotMergeable
from adapterhub.methods import Meaning, Replacement, TokenRows
from adapterhub.tensorfile import ArrayTensor, Tensor, shown

REFUSE, AVERAGE = "refuse", "average"


@dataclass(frozen=True)
class Wholes:
    """`tensors`: (module, role) → the tensor that remains. `tokens`: module → its rows' tokens.

    `task` and `labels` are those of who brings the head.
    """

    tensors: Mapping[tuple[str, str], Tensor]
    tokens: Mapping[str, tuple[int, ...]]
    task: str | None
    labels: tuple[str, ...]


@dataclass(frozen=True)
class _Holder:
    number: int
    value: Tensor
    tokens: tuple[int, ...] | None


def wholes(
    inputs: Sequence[Input], weights: Sequence[float], meanings: Sequence[Meaning], how: str | int
) -> Wholes:
    """`how`: REFUSE, AVERAGE, or the number of the input whose tensors are taken.

    Raises NotMergeable, with every tensor that nobody decided on.
    """
    found = _holders(meanings)
    open_ones = {place: held for place, held in found.items() if not _alike(held)}
    chosen = {place: held[0] for place, held in found.items() if place not in open_ones}
    if isinstance(how, int):
        chosen |= {
            place: next((each for each in held if each.number == how), held[0])
            for place, held in open_ones.items()
            if how in {each.number for each in held}
        }
    undecided = {place: held for place, held in open_ones.items() if place not in chosen}
    averaged = {}
    if how == AVERAGE:
        averaged = {place: _averaged(place, held, weights) for place, held in undecided.items()}
    elif undecided:
        _refuse(inputs, undecided)
    task, labels = _head(inputs, found, how)
    return Wholes(
        tensors={place: each.value for place, each in chosen.items()} | averaged,
        tokens={
            module: each.tokens
            for (module, _), each in {**chosen, **{p: open_ones[p][0] for p in averaged}}.items()
            if each.tokens is not None
        },
        task=task,
        labels=labels,
    )


def _holders(meanings: Sequence[Meaning]) -> dict[tuple[str, str], list[_Holder]]:
    found: dict[tuple[str, str], list[_Holder]] = {}
    for number, meaning in enumerate(meanings):
        for part in meaning:
            if isinstance(part, Replacement | TokenRows):
                tokens = part.indices if isinstance(part, TokenRows) else None
                holder = _Holder(number, part.value, tokens)
                found.setdefault((part.module, part.role), []).append(holder)
    return found


def _alike(held: Sequence[_Holder]) -> bool:
    first = held[0]
    return all(_same(first, other) for other in held[1:])


def _same(one: _Holder, other: _Holder) -> bool:
    a, b = one.value, other.value
    if (a.dtype, a.shape, one.tokens) != (b.dtype, b.shape, other.tokens):
        return False
    return all(x == y for x, y in zip(a.pieces(), b.pieces(), strict=True))


def _averaged(
    place: tuple[str, str], held: Sequence[_Holder], weights: Sequence[float]
) -> ArrayTensor:
    """Σ wᵢ·vᵢ / Σ wᵢ in fp64, in the order of the inputs, rounded once to fp32."""
    name = shown(f"{place[0]}.{place[1].removeprefix(REPLACE)}")
    shapes = {(each.value.shape, each.tokens) for each in held}
    total = sum(weights[each.number] for each in held)
    if len(shapes) > 1 or cancels(weights[each.number] for each in held):
        why = "their weights add up to 0" if len(shapes) == 1 else "they differ in shape or tokens"
        raise NotMergeable(f"{name} cannot be averaged: {why}", remedy="choose one: --whole NAME")
    mean: Matrix = np.zeros(held[0].value.shape)
    for each in held:
        mean += weights[each.number] / total * np.asarray(each.value.read(), np.float64)
    with np.errstate(over="ignore"):
        single = mean.astype(np.float32)
    if not np.isfinite(single).all():
        raise NotMergeable(
            f"{name} becomes infinite or NaN, or is so already", remedy="choose one: --whole NAME"
        )
    return ArrayTensor(single)


def _refuse(
    inputs: Sequence[Input], undecided: Mapping[tuple[str, str], Sequence[_Holder]]
) -> None:
    details = []
    for (module, role), held in sorted(undecided.items()):
        names = ", ".join(inputs[each.number].name for each in held)
        details.append(f"{module}.{role.partition(':')[2] or role}: {names}")
    raise NotMergeable(
        "tensors that are saved whole differ between these adapters",
        details=details,
        remedy="--whole average, or --whole NAME for those of one adapter",
    )


def _head(
    inputs: Sequence[Input], found: Mapping[tuple[str, str], Sequence[_Holder]], how: str | int
) -> tuple[str | None, tuple[str, ...]]:
    """Task and labels: of the chosen input, else what all that say something say alike."""
    if isinstance(how, int):
        chosen = inputs[how].adapter
        if chosen.task or chosen.labels:
            return chosen.task, chosen.labels
    tasks = {each.adapter.task for each in inputs} - {None}
    labels = {each.adapter.labels for each in inputs} - {()}
    if found and (len(tasks) > 1 or len(labels) > 1):
        raise NotMergeable(
            "these adapters bring heads for different tasks or labels",
            details=[f"{i.name}: {i.adapter.task}, {', '.join(i.adapter.labels)}" for i in inputs],
            remedy="choose one head: --whole NAME",
        )
    task = tasks.pop() if len(tasks) == 1 else None
    return task, labels.pop() if len(labels) == 1 else ()
