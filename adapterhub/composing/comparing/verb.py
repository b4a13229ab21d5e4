"""`compare` for people: refs in, figures out."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from pathlib import Path

from adapterhub.adapter import REPLACE
from adapterhub.base import Base
from adapterhub.composing import sites
from adapterhub.composing.comparing import comparison
from adapterhub.composing.comparing import plot as picture
from adapterhub.composing.comparing.beside import Weights
from adapterhub.composing.comparing.comparison import Bases, Compared, Comparison, Measured, Pair
from adapterhub.composing.comparing.figures import Delta, Meeting, Signs, meet, sampled, signs
from adapterhub.composing.comparing.meeting import Place, places
from adapterhub.composing.converting import ADDED_BY_PEFT, summed
from adapterhub.composing.inputs import Input, check_unchanged, compared_bases, input_of
from adapterhub.composing.window import Progress, in_order
from adapterhub.errors import InvalidOption, NotMergeable, NotSupported
from adapterhub.kernels.floatmode import default_float_mode
from adapterhub.methods import (
    BiasDelta,
    LowRank,
    Meaning,
    Method,
    Part,
    Replacement,
    Shaped,
    TokenRows,
    Transform,
    method,
)
from adapterhub.methods import Delta as WholeDelta
from adapterhub.methods.meaning import roles_of
from adapterhub.registry import Registry
from adapterhub.registry.naming import Naming
from adapterhub.registry.opening import opened
from adapterhub.registry.shaped import settled

_NO_SUM = {
    Transform: "what it does to a weight is no sum",
    Replacement: "it is saved whole",
    TokenRows: "its rows replace those of the base",
    Shaped: "it hangs on the shapes of the base: --base BASE",
}


def compare(
    adapters: Sequence[str | Path],
    *,
    base: str | Path | None = None,
    exact: bool = False,
    plot: str | Path | None = None,
    allow_pickle: bool = False,
    registry: Registry | None = None,
    on_plan: Callable[[int], Progress | None] | None = None,
) -> Comparison:
    """How alike two or more adapters are, by module and in all: cosines, subspaces, signs, norms.

    `adapters`: refs or paths. `base`: a BASE, for norms relative to its weights; by default the
    registered one with the weights_root that an adapter records. `exact`: compare the signs of all
    elements, not of a sample (see `figures.sampled`). `plot`: a file for the picture, .png, .svg or
    .pdf, which needs the extra `plot`. `on_plan` is told how many modules there are, and may return
    a function that is told of modules done.

    Adapters of different bases are compared all the same, and the result says so. Raises
    InvalidOption for fewer than two, NotSupported where the method of one does not add to weights,
    NotMergeable for values that are NaN or infinite, MissingExtra, OutputError.
    """
    if len(adapters) < 2:
        raise InvalidOption("a comparison needs two adapters or more", remedy="name another one")
    if plot is not None:
        picture.check(Path(plot))
    with opened(registry) as reg:
        inputs = [input_of(reg.load(each, allow_pickle=allow_pickle)) for each in adapters]
        found = compared(inputs, _bases(reg, inputs, base), exact=exact, on_plan=on_plan)
        check_unchanged(inputs)
    if plot is not None:
        picture.write(found, Path(plot))
    return found


@dataclass(frozen=True)
class _Side:
    """An input, what it means, and the weights of its base, if that is at hand."""

    source: Input
    meaning: Meaning
    weights: Weights | None
    notes: tuple[str, ...]


def compared(
    inputs: Sequence[Input],
    bases: Sequence[Base | None],
    *,
    exact: bool = False,
    on_plan: Callable[[int], Progress | None] | None = None,
) -> Comparison:
    """As `compare`, with the base of each input, if that is at hand."""
    sides = _sides(inputs, bases)
    found, shapes = places(inputs, [side.meaning for side in sides])
    progress = on_plan(len(found)) if on_plan else None
    measured = []

    def held(place: Place) -> int:
        """Bytes of what has no factors."""
        whole = sum(bool(addition.whole) for addition in place.additions)
        return 4 * math.prod(place.form.shape) * whole

    for _, one in in_order(found, lambda place: _measured(sides, place, exact), held):
        measured.append(one)
        if progress:
            progress(1)
    count = len(inputs)
    norms = comparison.norms_of(measured, count)
    return Comparison(
        adapters=tuple(_compared(s, n, measured, norms[n]) for n, s in enumerate(sides)),
        bases=tuple(_related(inputs, pair) for pair in combinations(range(count), 2)),
        pairs=comparison.in_all(measured, count),
        modules=tuple(comparison.of_module(one, count) for one in measured),
        shapes=shapes,
        looked_at=comparison.looked_at(measured),
        notes=tuple(note for side in sides for note in side.notes),
    )


# --- the inputs -------------------------------------------------------------------------------


def _bases(
    registry: Registry, inputs: Sequence[Input], given: str | Path | None
) -> list[Base | None]:
    if given is not None:
        base = registry.base.resolve(given)
        return [base for _ in inputs]
    roots = {each.base_root for each in inputs}
    found = {root: registry.base.find(root, None) if root else None for root in roots}
    return [found[each.base_root] for each in inputs]


def _sides(inputs: Sequence[Input], bases: Sequence[Base | None]) -> list[_Side]:
    read = [_meaning(each, base) for each, base in zip(inputs, bases, strict=True)]
    meanings, apart = _spelled_alike(inputs, bases, [meaning for meaning, _ in read])
    _refuse_others(inputs, meanings)
    weights: dict[Path, Weights] = {}
    for base in bases:
        if base is not None and base.path not in weights:
            of_it = [n for n, other in enumerate(bases) if other and other.path == base.path]
            adapters = [(inputs[n].adapter, meanings[n]) for n in of_it]
            weights[base.path] = Weights(base, adapters)
    return [
        _Side(
            source,
            meaning,
            weights[base.path] if base else None,
            (*notes, *(apart if n == 0 else ())),
        )
        for n, (source, base, meaning, (_, notes)) in enumerate(
            zip(inputs, bases, meanings, read, strict=True)
        )
    ]


def _spelled_alike(
    inputs: Sequence[Input], bases: Sequence[Base | None], meanings: list[Meaning]
) -> tuple[list[Meaning], tuple[str, ...]]:
    """Modules by the names of the base's files, where adapters of several classes of one model
    spell them differently; or a note where no base tells."""
    if _apart(meanings) is None:
        return meanings, ()
    respelled = [
        tuple(replace(part, module=Naming(base).stored(part.module)) for part in meaning)
        if base
        else meaning
        for base, meaning in zip(bases, meanings, strict=True)
    ]
    if (said := _apart(respelled)) is None:
        return respelled, ()
    one, other, name, longer = said
    both = f"{name} of {inputs[one].name}, {longer} of {inputs[other].name}"
    return meanings, (f"not compared, though it may be one module: {both}",)


def _apart(meanings: Sequence[Meaning]) -> tuple[int, int, str, str] | None:
    return sites.apart([{part.module for part in meaning} for meaning in meanings])


def _meaning(source: Input, base: Base | None) -> tuple[Meaning, tuple[str, ...]]:
    """With what waits for the shapes of a base, if there is one; and notes."""
    row = method(source.adapter.method)
    if "merge" not in row.does:
        raise _no_sum([f"{source.name}: {row.title}"])
    meaning, notes = _read(source, row)
    if base is None or not any(_waits(source, part) for part in meaning):
        return meaning, notes
    naming = Naming(base)
    found = settled(naming, meaning)
    return tuple(summed(part, source.adapter, naming) for part in found), notes


def _waits(source: Input, part: Part) -> bool:
    """Whether a base tells what it adds."""
    return isinstance(part, Shaped) or (
        isinstance(part, Transform) and source.adapter.method in ADDED_BY_PEFT
    )


def _read(source: Input, row: Method) -> tuple[Meaning, tuple[str, ...]]:
    try:
        return row.implementation.meaning(source.adapter), ()
    except NotMergeable:
        found = row.implementation.meaning(source.adapter, base_is_initialised=True)
        return found, (f"{source.name} counts from the base that its own initialisation changed",)


def _refuse_others(inputs: Sequence[Input], meanings: Sequence[Meaning]) -> None:
    """Raises NotSupported where an adapter adds nothing that could be compared."""
    found = []
    for source, meaning in zip(inputs, meanings, strict=True):
        if not any(_adds(part) for part in meaning):
            reasons = sorted({why for part in meaning if (why := _why(source, part))})
            why = "; ".join(reasons) or "it changes nothing"
            found.append(f"{source.name}: {method(source.adapter.method).title}; {why}")
    if found:
        raise _no_sum(found)


def _why(source: Input, part: Part) -> str | None:
    """Why it has no part in the figures."""
    return _NO_SUM.get(Shaped if _waits(source, part) else type(part))


def _no_sum(details: Sequence[str]) -> NotSupported:
    return NotSupported(
        "only what adapters add to weights can be compared",
        details=details,
        remedy="compare LoRA and other adapters that add to weights; adapterhub diff compares the "
        "records of any two versions",
    )


def _adds(part: Part) -> bool:
    return isinstance(part, LowRank | WholeDelta | BiasDelta)


def _related(inputs: Sequence[Input], pair: Pair) -> Bases:
    one, other = (inputs[number] for number in pair)
    said, sure = compared_bases(one, other)
    if said:
        nameless = not sure and None in (one.base_name, other.base_name)
        return Bases(pair, "unknown" if nameless else "different", said)
    return Bases(pair, "same" if sure else "by name", "")


def _compared(side: _Side, number: int, measured: Sequence[Measured], norm: float) -> Compared:
    source = side.source
    return Compared(
        name=source.name,
        digest=source.digest,
        method=source.adapter.method,
        variants=method(source.adapter.method).variants(source.adapter.config),
        base=source.base_name,
        modules=sum(number in one.squares for one in measured),
        norm=norm,
        of_base=comparison.of_base(measured, number),
        left_out=tuple(_left_out(side)),
    )


def _left_out(side: _Side) -> Iterator[str]:
    """Every tensor that has no part in the figures."""
    for part in side.meaning:
        if why := _why(side.source, part):
            for role in roles_of(part):
                yield f"{part.module}.{role.removeprefix(REPLACE)}: {why}"
        elif isinstance(part, LowRank) and part.magnitude is not None:
            yield f"{part.module}.{part.roles[2]}: DoRA's magnitude hangs on the base's weights"
    adapter = side.source.adapter
    for module, role, why in method(adapter.method).implementation.idle(adapter):
        yield f"{module}.{role}: {why}"


# --- the figures ------------------------------------------------------------------------------


@default_float_mode()
def _measured(sides: Sequence[_Side], place: Place, exact: bool) -> Measured:
    """Of one module; one matrix of each adapter is held at a time."""
    readers = {addition.number: addition.read() for addition in place.additions}
    squares = dict.fromkeys(readers, 0.0)
    meetings: dict[Pair, list[Meeting]] = {pair: [] for pair in combinations(readers, 2)}
    found: dict[Pair, list[Signs]] = {pair: [] for pair in meetings}
    matrices = max(1, place.form.experts)
    for _ in range(matrices):
        deltas: dict[int, Delta] = {number: next(each) for number, each in readers.items()}
        for number, delta in deltas.items():
            squares[number] += delta.norm**2
        for one, other in meetings:
            meetings[one, other].append(meet(deltas[one], deltas[other]))
        if meetings:
            grid = sampled(place.form.shape, exact=exact)
            for pair, counted in signs(deltas, *grid).items():
                found[pair].append(counted)
    return Measured(
        module=place.name,
        shape=place.form.shape,
        matrices=matrices,
        squares=squares,
        weights=_weights(sides, place),
        meetings={pair: tuple(each) for pair, each in meetings.items()},
        signs={pair: tuple(each) for pair, each in found.items()},
    )


def _weights(sides: Sequence[_Side], place: Place) -> dict[int, float | None]:
    """The norm of the weight that is changed, by input."""
    found: dict[int, float | None] = {}
    for addition in place.additions:
        side = sides[addition.number]
        config = side.source.adapter.config
        found[addition.number] = side.weights.norm(addition, config) if side.weights else None
    return found
