"""Does what an adapter tells about its base fit a structure, and how well?

Every module must be there, and every size that is known must be the same. Three things weaken a fit
without spoiling it: modules inside a larger model, a vocabulary that has grown, and layers that
the adapter leaves alone.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property

from adapterhub.known_bases import (
    NEUTRAL,
    OUTER,
    Facts,
    ModulePath,
    Row,
    Shape,
    Size,
    Structure,
    parsed,
)
from adapterhub.methods.signature import Signature
from adapterhub.tensorfile import shown

_COPY = re.compile(r"\.(modules_to_save|original_module)\.")  # that PEFT writes once more
_MOST_NEW_TOKENS = 1024  # … or a 32nd part of the vocabulary


@dataclass(frozen=True)
class Group:
    """Modules of an adapter that differ in their numbers only. `example`: one as it is spelled."""

    path: ModulePath
    size: Size
    numbers: frozenset[tuple[int, ...]]
    example: str


@dataclass(frozen=True)
class Whole:
    """A tensor that is saved whole."""

    path: ModulePath
    tensor: str
    shape: tuple[int, ...]
    name: str


@dataclass(frozen=True)
class Seen:
    """A signature, sorted for comparisons with many structures."""

    signature: Signature
    groups: tuple[Group, ...]
    whole: tuple[Whole, ...]
    odd: str | None  # a name that no model can have

    @property
    def empty(self) -> bool:
        """Whether it tells nothing at all."""
        told = self.signature
        return not (self.groups or self.whole or told.width or told.layers or told.kv_width)

    @cached_property
    def sized(self) -> bool:
        """Whether both sizes of every module are known."""
        return all(None not in group.size for group in self.groups)


@dataclass(frozen=True)
class Fit:
    """`covered` of `layers` are changed by the adapter, of the longest stack that it changes.

    `outer`: words before the modules that say that the base is a part of the model. `grown`: the
    adapter's vocabulary, where it is not the base's. `new`: tensors that no class of the base has.
    """

    covered: int
    layers: int
    whole: bool
    outer: tuple[str, ...] = ()
    grown: int | None = None
    new: tuple[str, ...] = ()

    @property
    def share(self) -> float:
        return self.covered / self.layers if self.layers else 1.0


def seen(signature: Signature) -> Seen:
    found: dict[tuple[frozenset[str], str, Size], tuple[set[tuple[int, ...]], str]] = {}
    odd = None
    for name, size in signature.modules.items():
        path = parsed(name)
        if path is None:
            odd = name
            continue
        numbers, _ = found.setdefault((path.words, path.tail, size), (set(), name))
        numbers.add(path.numbers)
    groups = tuple(
        Group(ModulePath(words, tail, ()), size, frozenset(numbers), example)
        for (words, tail, size), (numbers, example) in found.items()
    )
    whole = []
    for name, shape in signature.whole.items():
        module, _, tensor = _COPY.sub(".", name).rpartition(".")
        path = parsed(module)
        if path is None:
            odd = name
        else:
            whole.append(Whole(path, tensor, tuple(shape), name))
    return Seen(signature, groups, tuple(whole), odd)


def compare(told: Seen, structure: Structure) -> Fit | str:
    """How it fits, or why not."""
    if told.odd is not None:
        return f"no model has {shown(told.odd)}"
    if wrong := _of_prompts(told.signature, structure.facts):
        return wrong
    rows: list[tuple[Group, tuple[Row, ...]]] = []
    outer: set[str] = set()
    grown: int | None = None
    for group in told.groups:
        strange = group.path.words - structure.words - NEUTRAL
        here = structure.rows.get(group.path.tail, ())
        if strange - OUTER or not here:
            return f"it has no {shown(group.example)}"
        outer |= strange
        if _fits(group.numbers, here, group.size):
            rows.append((group, here))
        elif _grew(group.size, here, structure.facts.vocabulary):
            grown = group.size[0]
        else:
            return _wrong_size(group, here)
    return _of_whole(told, structure, _covered(rows), outer, grown)


def _of_prompts(signature: Signature, facts: Facts) -> str:
    layers = {facts.layers, facts.decoder_layers} - {None}
    if signature.width is not None and signature.width != facts.width:
        return f"it is {facts.width or 'not known how'} wide, the prompt {signature.width}"
    if signature.layers is not None and signature.layers not in layers:
        return f"it has {facts.layers or 'other'} layers, the prefix {signature.layers}"
    kv_widths = _kv_widths(facts)
    if signature.kv_width is not None and kv_widths and signature.kv_width not in kv_widths:
        return f"its keys are {min(kv_widths)} wide, the prefix {signature.kv_width}"
    return ""


def _kv_widths(facts: Facts) -> set[int]:
    """PEFT takes width ÷ heads for the size of a head, whatever the model has."""
    if facts.kv_heads is None or facts.heads is None or facts.width is None:
        return set()
    sizes = {facts.head_size or 0, facts.width // facts.heads}
    return {facts.kv_heads * size for size in sizes if size}


def _fits(numbers: Iterable[tuple[int, ...]], rows: tuple[Row, ...], size: Size) -> bool:
    right = [row for row in rows if any(_agree(size, own) for own in row.sizes)]
    return bool(right) and all(any(row.has(own) for row in right) for own in numbers)


def _agree(one: Shape, other: Shape) -> bool:
    if len(one) != len(other):
        return False
    return all(a is None or b is None or a == b for a, b in zip(one, other, strict=True))


def _grew(shape: Shape, rows: tuple[Row, ...], vocabulary: int | None) -> bool:
    """Whether only the number of tokens differs, as much as people add some or pad them."""
    return any(
        _only_tokens_differ(shape, own, vocabulary)
        for row in rows
        for own in (*row.sizes, *row.tensors.values())
    )


def _only_tokens_differ(one: Shape, other: Shape, vocabulary: int | None) -> bool:
    if vocabulary is None or not one or not other or other[0] != vocabulary or one[0] is None:
        return False
    most = max(_MOST_NEW_TOKENS, vocabulary // 32)
    return abs(one[0] - vocabulary) <= most and _agree(one[1:], other[1:])


def _wrong_size(group: Group, rows: tuple[Row, ...]) -> str:
    sizes = {size for row in rows for size in row.sizes}
    if any(_agree(group.size, size) for size in sizes):
        return f"it has no layer for {shown(group.example)}"
    own = " or ".join(sorted(_spelled(size) for size in sizes)) or "without a weight"
    return f"its {shown(group.example)} is {own}, not {_spelled(group.size)}"


def _spelled(size: Size) -> str:
    return " × ".join("?" if part is None else str(part) for part in size)


def _covered(rows: Iterable[tuple[Group, tuple[Row, ...]]]) -> tuple[int, int, bool]:
    """Layers that the adapter changes, of how many; and whether it changes all of every stack.

    A stack is what the modules before their first number are in, `encoder.layer`; its layers are
    those that have any of the modules that the adapter changes.
    """
    own: dict[str, set[int]] = {}
    there: dict[str, set[int]] = {}
    for group, here in rows:
        stack, star, _ = group.path.tail.partition("*")
        if star:
            own.setdefault(stack, set()).update(numbers[0] for numbers in group.numbers)
            there.setdefault(stack, set()).update(*(row.layers for row in here))
    whole = all(len(own[stack]) == len(there[stack]) for stack in own)
    longest = max(own, key=lambda stack: (len(there[stack]), stack), default=None)
    if longest is None:
        return 0, 0, True
    return len(own[longest]), len(there[longest]), whole


def _of_whole(
    told: Seen,
    structure: Structure,
    covered: tuple[int, int, bool],
    outer: set[str],
    grown: int | None,
) -> Fit | str:
    new = []
    for item in told.whole:
        strange = item.path.words - structure.words - NEUTRAL
        rows = structure.rows.get(item.path.tail, ())
        if strange - OUTER or not rows:
            if item.path.numbers:
                return f"it has no {shown(item.name)}"
            new.append(item.name)
            continue
        outer |= strange
        if _has(item, rows):
            continue
        if not _grew(item.shape, rows, structure.facts.vocabulary):
            return f"its {shown(item.name)} is not {list(item.shape)}"
        grown = item.shape[0]
    count, layers, whole = covered
    return Fit(count, layers, whole, tuple(sorted(outer)), grown, tuple(sorted(new)))


def _has(item: Whole, rows: tuple[Row, ...]) -> bool:
    shapes: list[Mapping[str, Shape]] = [row.tensors for row in rows if row.has(item.path.numbers)]
    return any(item.tensor in own and _agree(item.shape, own[item.tensor]) for own in shapes)
