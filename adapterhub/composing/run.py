"""Follows a plan, one module at a time: reads its factors, applies the method, truncates."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np

from adapterhub.composing import sites
from adapterhub.composing.blocks import buffers, finite_energy
from adapterhub.composing.factored import Cut, Factors, Matrix, cut
from adapterhub.composing.methods.row import Delta, Given, Made, Method
from adapterhub.composing.plan import Plan
from adapterhub.composing.sites import Site
from adapterhub.composing.sketch import truncated
from adapterhub.composing.window import Progress, in_order
from adapterhub.errors import NotMergeable
from adapterhub.kernels.floatmode import default_float_mode

# With one module that is larger, and all factors, the peak stays below its deltas plus 500 MB.
MOST_HELD = 384 << 20


@dataclass(frozen=True, eq=False)
class Composed:
    """The factors of one site: scale·b·a. `cut`: what a truncation kept, None where there was none.

    `bias`: that of lora_B, to be multiplied by the scale too; None where no input has one.
    """

    site: Site
    a: Matrix
    b: Matrix
    rank: int
    scale: float
    cut: Cut | None
    bias: Matrix | None = None


def run(
    plan: Plan, *, progress: Progress | None = None, threads: int | None = None
) -> list[Composed]:
    """Every site of the plan, in order. `progress` is told of sites done.

    Raises NotMergeable for values that are NaN, infinite, or become so.
    """
    done: list[Composed] = []

    def held(site: Site) -> int:
        """Bytes of its dense deltas, and of what works on them."""
        if plan.method.kind != "dense":
            return 0
        return 4 * math.prod(site.shape) * len(site.terms) + buffers(site.shape)

    work = partial(_composed, plan)
    for _, composed in in_order(plan.sites, work, held, threads, MOST_HELD):
        done.append(composed)
        if progress:
            progress(1)
    return done


@default_float_mode()
@np.errstate(over="ignore", invalid="ignore")  # `finished` refuses what comes of it
def _composed(plan: Plan, site: Site) -> Composed:
    made, cuts = [], []
    for number, deltas in enumerate(_matrices(site)):
        given = Given(
            shape=site.shape,
            parameters=plan.settings(site),
            seed=seed_of(plan.options.seed, site.name, number),
            inputs=len(plan.inputs),
            weights=plan.weights_of(site),
            numbers=tuple(delta.number for delta in deltas),
        )
        try:
            sketched = sketch_seed(site.name, number)
            one, what = _made(plan, deltas, given, sketched, *plan.size(site))
        except NotMergeable as error:
            raise NotMergeable(f"{site.name}: {error.message}", remedy=error.remedy) from None
        made.append(one)
        cuts.append(what)
    return finished(site, made, cuts, lambda scale: _bias(plan, site, scale))


def finished(
    site: Site,
    made: Sequence[Made],
    cuts: Sequence[Cut | None],
    bias: Callable[[float], Matrix | None] = lambda scale: None,
) -> Composed:
    """What a LoRA file holds of a site, from what was made of each of its matrices.

    `bias` is given the scale. Raises NotMergeable for what is NaN or infinite.
    """
    made = _alike(made)
    a, b = sites.spelled(site, [each.factors for each in made])
    _check_finite(site, a, b)
    scale = made[0].scale
    added = bias(scale)
    if added is not None:
        _check_finite(site, added)
    return Composed(
        site=site,
        a=a,
        b=b,
        rank=made[0].factors.rank,
        scale=scale,
        cut=_total(cuts),
        bias=added,
    )


def _matrices(site: Site) -> Iterator[list[Delta]]:
    """The deltas of each matrix of a site: one, or one for each expert."""
    readers = [sites.read(term) for term in site.terms]
    for _ in range(site.matrices):
        yield [
            Delta(term.number, term.weight, term.part.scale, next(reader))
            for term, reader in zip(site.terms, readers, strict=True)
        ]


def _made(
    plan: Plan,
    deltas: list[Delta],
    given: Given,
    seed: int,
    rank: int | None,
    energy: float | None,
) -> tuple[Made, Cut | None]:
    if not deltas:
        return Made(nothing(given.shape)), None
    if plan.method.kind == "dense":
        ranks = sum(delta.factors.rank for delta in deltas)
        dense = _dense(plan.method, deltas, given)
        found, what = truncated(dense, rank or (None if energy else ranks), energy, seed)
        return Made(found.factors().single()), what
    made: Made = plan.method.apply(deltas, given)
    if rank is None and energy is None:
        return Made(made.factors.single(), made.scale), None
    factors, kept = cut(made.factors, rank, energy, made.scale)
    return Made(factors.single()), kept


def _dense(method: Method, deltas: Sequence[Delta], given: Given) -> Matrix:
    with np.errstate(over="ignore", invalid="ignore"):
        dense = [delta.dense() for delta in deltas]
        for each in dense:
            finite_energy(each)
        made: Matrix = method.apply(dense, [delta.weight for delta in deltas], given)
    return made


def nothing(shape: tuple[int, int]) -> Factors:
    """A delta of zeros, of rank 1: the least that a LoRA can have."""
    return Factors(np.zeros((shape[0], 1), np.float32), np.zeros((1, shape[1]), np.float32))


def _alike(made: Sequence[Made]) -> list[Made]:
    """Experts share a rank and a scale: the lower ranks are filled up with zeros."""
    rank = max(each.factors.rank for each in made)
    scales = {each.scale for each in made}
    common = scales.pop() if len(scales) == 1 else 1.0
    return [Made(_padded(each, rank, common), common) for each in made]


def _padded(made: Made, rank: int, scale: float) -> Factors:
    b, a = made.factors.b, made.factors.a
    if made.scale != scale:
        b = (made.scale / scale * b.astype(np.float64)).astype(np.float32)
    missing = rank - made.factors.rank
    return Factors(np.pad(b, ((0, 0), (0, missing))), np.pad(a, ((0, missing), (0, 0))))


def _total(cuts: Sequence[Cut | None]) -> Cut | None:
    known = [each for each in cuts if each]
    if not known:
        return None
    return Cut(
        max(each.rank for each in known),
        math.fsum(each.energy for each in known),
        math.fsum(each.total for each in known),
    )


def _bias(plan: Plan, site: Site, scale: float) -> Matrix | None:
    """lambda · Σ wᵢ·sᵢ·biasᵢ / scale in fp64, rounded once."""
    parts = plan.biases.get(site.module, ())
    if not parts:
        return None
    weights = {term.number: term.weight for term in site.terms}
    factor = float(plan.settings(site).get("lambda", 1.0)) / scale
    total: Matrix = np.zeros(parts[0][1].value.shape)
    for number, part in parts:
        weight = weights.get(number, 0.0) * part.scale * factor
        total += weight * np.asarray(part.value.read(), np.float64)
    return total.astype(np.float32)


def _check_finite(site: Site, *values: Matrix) -> None:
    if not all(np.isfinite(each).all() for each in values):
        raise NotMergeable(f"{site.name} becomes infinite or NaN", remedy="give smaller weights")


def seed_of(seed: int, name: str, number: int) -> int:
    """128 bits for one matrix of one site, the same on every machine."""
    text = f"{seed}\0{name}\0{number}".encode()
    return int.from_bytes(hashlib.sha256(text).digest()[:16], "little")


def sketch_seed(name: str, number: int) -> int:
    """Of a truncation, which is nothing that a user's seed decides, and draws from no mask's."""
    return seed_of(-1, name, number)
