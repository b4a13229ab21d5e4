"""An adapter that adds to weights → a LoRA of another rank: resized, or converted to LoRA.

The truncation of each delta is the best there is of its rank (Eckart & Young, Psychometrika 1,
1936). What needs none stays as it is, in value; a rank larger than an adapter's own is no reason
to pad it, so that its modules keep the rank that they have. Factors are stored in fp32, whatever
they were stored in before.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from adapterhub.adapter import BaseClaim
from adapterhub.base import Base
from adapterhub.composing import sites
from adapterhub.composing.building import Parts, lora
from adapterhub.composing.converting import Addition, Additive, additive
from adapterhub.composing.extracting.saving import saved_fields
from adapterhub.composing.factored import Cut, Factors, Matrix, Svd, finite, rank_for, svd
from adapterhub.composing.inputs import Input, check_unchanged, input_of
from adapterhub.composing.methods.row import Made
from adapterhub.composing.result import ModuleReport, total_error
from adapterhub.composing.run import Composed, finished, nothing, sketch_seed
from adapterhub.composing.sizing import Sizing
from adapterhub.composing.sketch import truncated
from adapterhub.composing.wholes import REFUSE, wholes
from adapterhub.composing.window import Progress, in_order
from adapterhub.composing.writing import Artefact, check_target, deliver
from adapterhub.errors import AdapterHubError, NotSupported
from adapterhub.kernels.floatmode import default_float_mode
from adapterhub.methods import LowRank, is_exact
from adapterhub.methods.computed import fp32
from adapterhub.registry import Registry, manifests
from adapterhub.registry.opening import opened

Result = TypeVar("Result")
_KEPT = (  # of a LoRA's config, what resizing leaves alone
    *("bias", "fan_in_fan_out", "target_modules", "target_parameters", "modules_to_save"),
    *("exclude_modules", "layers_to_transform", "layers_pattern", "peft_version"),
)


@dataclass(frozen=True)
class Resized:
    """What was made: `version` (`name@sha256:…`) or `out`, one of them None.

    `method`: that of the adapter as it was. `error`: of all modules together, None where nothing
    was truncated. `reproducible`: the same digest on every machine.
    """

    version: str | None
    out: str | None
    input: str
    method: str
    modules: list[ModuleReport]
    error: float | None
    reproducible: bool
    notes: list[str]

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def resize(
    adapter: str | Path,
    *,
    rank: int | None = None,
    energy: float | None = None,
    uniform: bool = False,
    name: str | None = None,
    out: str | Path | None = None,
    base: str | Path | None = None,
    allow_pickle: bool = False,
    registry: Registry | None = None,
    on_plan: Callable[[int], Progress | None] | None = None,
) -> Resized:
    """An adapter → a LoRA of a rank, or with a share of the energy; both: whichever is smaller.

    Every method that adds to weights becomes a LoRA: exactly where its change has a rank that is
    low enough, else truncated, with the error of each module in the report. `uniform`: one rank for
    all modules, that keeps the share of all their energy. `base` (a BASE; by default the recorded
    one, if it is at hand) is needed by methods that hang on the shapes of the weights. `on_plan` is
    given the number of modules, and may return a function that is told of modules done.

    Raises InvalidOption, NotMergeable for what is no sum (what multiplies, DoRA), NotSupported,
    BaseMismatch, OutputError; nothing is written then.
    """
    sizing = Sizing(rank, energy, bool(uniform))
    check_target(name, out)
    with opened(registry) as reg:
        loaded = reg.load(adapter, allow_pickle=allow_pickle)
        source = input_of(loaded)
        of = _base(reg, source, base)
        found = additive(source, of)
        progress = on_plan(len(found.additions)) if on_plan else None
        done = run(found, sizing, progress)
        exact = _is_exact(found, done)
        made = Artefact(
            _adapter(source, found, done), _record(source), _lineage(source, sizing, exact)
        )

        def check() -> None:
            check_unchanged([source])
            if of:
                of.check_unchanged()

        version = deliver(made, name, out, reg, [source.name], check)
        return Resized(
            version=version,
            out=None if out is None else str(out),
            input=source.name,
            method=source.adapter.method,
            modules=[ModuleReport.of(one, inputs=1) for one in done],
            error=total_error(done),
            reproducible=exact,
            notes=_notes(done, sizing),
        )


def _base(registry: Registry, source: Input, given: str | Path | None) -> Base | None:
    """The base that was named, or the recorded one where it is at hand."""
    if given is not None:
        return registry.base.resolve(given)
    if source.adapter.method == "lora":
        return None
    try:
        return registry.base.find(source.base_root, source.base_name) if source.base_root else None
    except AdapterHubError:
        return None


# --- one module after the other ---------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class _Known:
    """The singular values and vectors of each matrix of a site, and Σs² of each in full."""

    addition: Addition
    matrices: tuple[tuple[Svd, float], ...]


def run(found: Additive, sizing: Sizing, progress: Progress | None = None) -> list[Composed]:
    """Every addition, in order. Raises NotMergeable for NaN and infinity, NotSupported for none."""
    if not found.additions:
        raise NotSupported(
            "this adapter adds nothing to the weight of a module, so that there is no LoRA of it"
        )
    has_bias = any(each.bias for each in found.additions)
    if sizing.uniform:
        known = list(_told(found.additions, _decomposed, progress))
        rank = uniform_rank([matrix for each in known for matrix in each.matrices], sizing)
        return [_cut(each, rank, has_bias) for each in known]
    return list(_told(found.additions, lambda each: _resized(each, sizing, has_bias), progress))


def _told(
    additions: Sequence[Addition], work: Callable[[Addition], Result], progress: Progress | None
) -> Iterator[Result]:
    for _, result in in_order(additions, work, _held):
        yield result
        if progress:
            progress(1)


def _held(each: Addition) -> int:
    return 4 * math.prod(each.site.shape) if each.dense else 0


@default_float_mode()
@np.errstate(over="ignore", invalid="ignore")  # `finished` refuses what comes of it
def _resized(each: Addition, sizing: Sizing, has_bias: bool) -> Composed:
    if as_they_are := _kept(each, sizing):
        return finished(each.site, as_they_are, [None], _bias(each, has_bias))
    made, cuts = [], []
    for number, matrix in enumerate(_matrices(each)):
        if isinstance(matrix, Factors):
            whole = svd(matrix)
            first, what = _first(
                whole, _energy(whole), rank_for(whole.s, sizing.rank, sizing.energy)
            )
        else:
            seed = sketch_seed(each.site.name, number)
            first, what = truncated(matrix, sizing.rank, sizing.energy, seed)
        made.append(Made(first.factors().single()))
        cuts.append(what)
    return finished(each.site, made, cuts, _bias(each, has_bias))


def _kept(each: Addition, sizing: Sizing) -> list[Made]:
    """The factors as they are, where their rank is low enough; a matrix of zeros for nothing."""
    if not each.site.terms:
        return [] if each.dense else [Made(nothing(each.site.shape))]
    (term,) = each.site.terms
    if sizing.energy is not None or sizing.rank is None or term.rank > sizing.rank:
        return []
    return [Made(factors, term.part.scale) for factors in sites.read(term)]


def _matrices(each: Addition) -> Iterator[Factors | Matrix]:
    """The delta of each matrix, with its scale: fp64 factors, or dense fp32."""
    if each.dense is not None:
        yield _finite(each, fp32(each.dense).reshape(each.site.shape[:: _turn(each)]))
        return
    for term in each.site.terms:
        for factors in sites.read(term):
            both = factors.double()
            yield Factors(term.part.scale * both.b, both.a)


def _turn(each: Addition) -> int:
    """An embedding's delta is the transpose of what the formula has."""
    return -1 if each.site.layout == "embedding" else 1


def _finite(each: Addition, values: Matrix) -> Matrix:
    values *= np.float32(each.scale)
    finite(values, f"{each.site.name} has a change with")
    return values if _turn(each) == 1 else np.ascontiguousarray(values.T)


def _energy(found: Svd) -> float:
    return float(np.square(found.s).sum())


def _first(found: Svd, total: float, rank: int) -> tuple[Svd, Cut]:
    kept = min(rank, len(found.s))
    return found.first(kept), Cut(kept, float(np.square(found.s[:kept]).sum()), total)


def _bias(each: Addition, has_bias: bool) -> Callable[[float], Matrix | None]:
    """That of lora_B, which the scale multiplies; zeros where only other modules have one."""

    def made(scale: float) -> Matrix | None:
        if not has_bias or each.site.layout != "linear":
            return None
        if each.bias is None:
            return np.zeros(each.site.shape[0], np.float32)
        values = fp32(each.bias.value).astype(np.float64) * (each.bias.scale / scale)
        return values.astype(np.float32)

    return made


# --- one rank for all -------------------------------------------------------------------------


@default_float_mode()
@np.errstate(over="ignore", invalid="ignore")
def _decomposed(each: Addition) -> _Known:
    matrices = []
    for number, matrix in enumerate(_matrices(each)):
        if isinstance(matrix, Factors):
            found = svd(matrix)
            matrices.append((found, _energy(found)))
        else:
            found, what = truncated(matrix, None, None, sketch_seed(each.site.name, number))
            matrices.append((found, what.total))
    return _Known(each, tuple(matrices))


def uniform_rank(matrices: Sequence[tuple[Svd, float]], sizing: Sizing) -> int:
    """The smallest rank at which all matrices together keep the share of their energy."""
    most = max((len(found.s) for found, _ in matrices), default=1)
    spectrum = np.zeros(most)
    for found, _ in matrices:
        spectrum[: len(found.s)] += np.square(found.s)
    total = math.fsum(total for _, total in matrices)
    return rank_for(np.sqrt(spectrum), sizing.rank, sizing.energy, total)


@default_float_mode()
@np.errstate(over="ignore", invalid="ignore")
def _cut(known: _Known, rank: int, has_bias: bool) -> Composed:
    each = known.addition
    if not known.matrices:
        return finished(each.site, [Made(nothing(each.site.shape))], [None], _bias(each, has_bias))
    firsts = [_first(found, total, rank) for found, total in known.matrices]
    made = [Made(found.factors().single()) for found, _ in firsts]
    return finished(each.site, made, [cut for _, cut in firsts], _bias(each, has_bias))


# --- the adapter ------------------------------------------------------------------------------


def _adapter(source: Input, found: Additive, done: Sequence[Composed]) -> Any:
    kept = wholes([source], [1.0], [found.rest], REFUSE)
    config = source.adapter.config
    if source.adapter.method == "lora":
        fields = {field: config[field] for field in _KEPT if field in config}
    else:
        fields = _converted(config, kept.tensors)
    return lora(
        Parts(
            composed=done,
            wholes=kept.tensors,
            tokens=kept.tokens,
            base=BaseClaim(source.base_name, source.adapter.base.revision),
            fields=fields,
            task=source.adapter.task,
            labels=source.adapter.labels,
        )
    )


def _converted(config: Mapping[str, Any], saved: Mapping[tuple[str, str], Any]) -> dict[str, Any]:
    """Targets by their paths; heads by the names that the config has, else by theirs."""
    fields = saved_fields(saved)
    names = config.get("modules_to_save")
    if isinstance(names, list) and names:
        more = [
            m for m in fields["modules_to_save"] or () if not m.endswith(tuple(map(str, names)))
        ]
        fields["modules_to_save"] = [*map(str, names), *more]
    return {**fields, "fan_in_fan_out": bool(config.get("fan_in_fan_out"))}


def _record(source: Input) -> manifests.BaseRecord:
    known = dict(source.base or {})
    fields = ("structure_root", "weights_root", "quantization")
    found = {field: known.get(field) for field in fields}
    return manifests.BaseRecord(source.base_name, source.adapter.base.revision, **found)


def _lineage(source: Input, sizing: Sizing, exact: bool) -> dict[str, Any]:
    known = {"digest": source.digest} if source.digest else {}
    return {
        "operation": "resize",
        "inputs": [{**known, "weights_root": source.root, "role": "adapter"}],
        "parameters": {**asdict(sizing), "reproducible": exact},
    }


def _is_exact(found: Additive, done: Sequence[Composed]) -> bool:
    """Whether nothing was decomposed, and every factor has the same bits everywhere."""
    parts = [term.part for each in found.additions for term in each.site.terms]
    sure = all(is_exact(p.a) and is_exact(p.b) for p in parts if isinstance(p, LowRank))
    return sure and not any(one.cut for one in done)


def _notes(done: Sequence[Composed], sizing: Sizing) -> list[str]:
    if sizing.rank is None or sizing.energy is not None:
        return []
    lower = sum(one.rank < sizing.rank for one in done)
    return [f"modules that keep their own, lower rank: {lower}"] if lower else []
