"""Base + fine-tuned checkpoint → an adapter: what a training did, as a LoRA and whole tensors.

The delta of each weight, fp32(fine-tuned) − fp32(base), is truncated by itself, √S on either
factor, in fp32. Both checkpoints are read by blocks, and the deltas of a few modules are in memory.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from adapterhub.adapter import REPLACE, BaseClaim
from adapterhub.base import Base
from adapterhub.composing.building import Parts, lora
from adapterhub.composing.extracting.checkpoints import Checkpoints, Pair, checkpoints
from adapterhub.composing.extracting.native import biases, sparse
from adapterhub.composing.extracting.saving import (
    REST,
    SAVE,
    Found,
    Wanted,
    head_of,
    is_target,
    saved_fields,
    settle_rest,
)
from adapterhub.composing.factored import check_share
from adapterhub.composing.methods.row import Made
from adapterhub.composing.result import ModuleReport, total_error
from adapterhub.composing.run import Composed, finished, sketch_seed
from adapterhub.composing.sites import of_weight
from adapterhub.composing.sizing import Sizing
from adapterhub.composing.sketch import truncated
from adapterhub.composing.window import Progress, in_order
from adapterhub.composing.writing import Artefact, check_target, deliver
from adapterhub.errors import BaseMismatch, InvalidOption, NotSupported
from adapterhub.kernels.floatmode import default_float_mode
from adapterhub.registry import Registry, manifests
from adapterhub.registry.bases import short_name
from adapterhub.registry.hubcache import repository
from adapterhub.registry.opening import opened


@dataclass(frozen=True)
class Extraction:
    """What is wanted of a pair of checkpoints.

    `rank`, `energy`: of a LoRA; `biases_only`: the biases instead; `sparse`: instead this share of
    all elements, those that changed most. `targets`: ends of module paths, or patterns with `*`,
    that narrow where there are factors. `rest`: what becomes of what has no low rank.
    """

    rank: int | None = None
    energy: float | None = None
    biases_only: bool = False
    sparse: float | None = None
    targets: tuple[str, ...] = ()
    rest: str = SAVE

    def __post_init__(self) -> None:
        ranks = self.rank is not None or self.energy is not None
        if ranks + self.biases_only + (self.sparse is not None) != 1:
            raise InvalidOption(
                "say what to extract",
                remedy="one of --rank 16 or --energy 0.9 (a LoRA), --biases-only, --sparse 0.01",
            )
        if ranks:
            Sizing(self.rank, self.energy)
        check_share("sparse", self.sparse)
        if self.rest not in REST:
            raise InvalidOption(f"rest is {self.rest!r}", remedy=f"one of {', '.join(REST)}")
        if self.targets and not ranks:
            raise InvalidOption("targets are those of a LoRA", remedy="give a rank or an energy")

    @property
    def wanted(self) -> Wanted:
        return Wanted(self.targets, self.rest)


@dataclass(frozen=True)
class Extracted:
    """What was made: `version` (`name@sha256:…`) or `out`, one of them None.

    `modules`: those with factors, and what their rank loses; `error`: of all of them together.
    `elements`: how many there are of a sparse delta, whose `error` is that of all that changed.
    `saved`: tensors kept whole, of `saved_bytes` together; `dropped`: tensors that changed and were
    left out as asked; `left_out`: of the base's own head; `unchanged`: how many are the base's.
    """

    version: str | None
    out: str | None
    method: str
    modules: list[ModuleReport]
    error: float | None
    elements: int | None
    saved: list[str]
    saved_bytes: int
    dropped: list[str]
    left_out: list[str]
    unchanged: int
    base_root: str
    tuned_root: str

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def extract(
    base: str | Path,
    finetuned: str | Path,
    *,
    rank: int | None = None,
    energy: float | None = None,
    biases_only: bool = False,
    sparse: float | None = None,
    targets: Sequence[str] = (),
    rest: str = SAVE,
    name: str | None = None,
    out: str | Path | None = None,
    registry: Registry | None = None,
    on_plan: Callable[[int], tuple[Progress, Progress]] | None = None,
) -> Extracted:
    """What was trained between two checkpoints of one structure (each a BASE), as an adapter.

    A LoRA on every linear layer and convolution that changed, of a `rank` or with a share of each
    delta's `energy`; or all biases (`biases_only`); or the share `sparse` of all elements, the
    largest changes. `targets` narrow the LoRA. `rest`: embeddings, norms, heads and biases that
    changed are saved whole ("save"), "refuse"d, or "drop"ped, and listed. `on_plan` is given the
    bytes of both checkpoints, and returns functions that are told of bytes hashed and compared.

    Raises InvalidOption, BaseMismatch, NotSupported, OutputError; nothing is written then.
    """
    narrowed = (targets,) if isinstance(targets, str) else tuple(targets)
    options = Extraction(rank, energy, bool(biases_only), sparse, narrowed, rest)
    check_target(name, out)
    with opened(registry) as reg:
        old, new = reg.base.resolve(base), reg.base.resolve(finetuned)
        both = checkpoints(old, new)
        total = sum(t.nbytes for each in (old, new) for t in each.tensors.values())
        _check(both)
        hashing, comparing = on_plan(total) if on_plan else (None, None)
        roots = old.weights_root(reg.cache, hashing), new.weights_root(reg.cache, hashing)
        if roots[0] == roots[1]:
            raise NotSupported(
                "the two checkpoints hold the same weights",
                remedy="name the base, then what was fine-tuned from it",
            )
        found = _found(both, options, comparing or _nobody)
        made = Artefact(found.adapter, _record(old, roots[0]), _lineage(options, roots))
        inputs = [str(base), str(finetuned)]
        version = deliver(made, name, out, reg, inputs, both.check_unchanged)
        return _told(both, found, roots, version, None if out is None else str(out))


def _told(
    both: Checkpoints, found: Found, roots: tuple[str, str], version: str | None, out: str | None
) -> Extracted:
    whole = [tensor for _, role, tensor in found.adapter.tensors() if role.startswith(REPLACE)]
    return Extracted(
        version=version,
        out=out,
        method=found.adapter.method,
        modules=[ModuleReport.of(one, inputs=1) for one in found.composed],
        error=found.error if found.elements else total_error(found.composed),
        elements=found.elements,
        saved=list(found.saved),
        saved_bytes=sum(tensor.nbytes for tensor in whole),
        dropped=list(found.dropped),
        left_out=list(both.left_out),
        unchanged=len(both.pairs) - found.changed,
        base_root=roots[0],
        tuned_root=roots[1],
    )


def _nobody(amount: int) -> None:
    pass


def _check(both: Checkpoints) -> None:
    """Raises BaseMismatch and NotSupported for pairs that are none."""
    pairs = both.pairs
    if not any(pair.old for pair in pairs):
        raise BaseMismatch(
            f"{both.base.path} and {both.tuned.path} have no tensor in common",
            remedy="give the base that it was fine-tuned from",
        )
    for each in (both.base, both.tuned):
        if each.config.get("quantization_config"):
            raise NotSupported(
                f"{each.path} is quantised", remedy="give the checkpoint in full precision"
            )


def _found(both: Checkpoints, options: Extraction, progress: Progress) -> Found:
    claim = _claim(both.base)
    if options.biases_only:
        return biases(both, options.wanted, claim, progress)
    if options.sparse is not None:
        return sparse(both, options.sparse, options.wanted, claim, progress)
    return _lora(both, options, claim, progress)


# --- a LoRA -----------------------------------------------------------------------------------


def _lora(both: Checkpoints, options: Extraction, claim: BaseClaim, progress: Progress) -> Found:
    targets = [pair for pair in both.pairs if is_target(pair, options.wanted)]
    _refuse_unused(options.targets, both.pairs)
    names = {pair.name for pair in targets}
    others = [pair for pair in both.pairs if pair.name not in names]
    rest = settle_rest(others, options.wanted, progress)
    done = sorted(_composed(targets, options, progress), key=lambda one: one.site.name)
    if not done:
        raise NotSupported(
            "no weight of a linear layer differs between the two checkpoints",
            remedy="--biases-only, or --sparse, for what has changed elsewhere",
        )
    task, labels = head_of(both, rest)
    adapter = lora(
        Parts(
            composed=done,
            wholes=rest.tensors,
            base=claim,
            fields={
                **saved_fields(rest.tensors),
                "fan_in_fan_out": any(pair.transposed for pair in targets),
                "target_modules": _targets(done, both.pairs),
            },
            task=task,
            labels=labels,
        )
    )
    return Found(adapter, rest.saved, rest.dropped, len(done) + rest.changed, tuple(done))


def _refuse_unused(patterns: Sequence[str], pairs: Sequence[Pair]) -> None:
    for pattern in patterns:
        if not any(Wanted((pattern,)).takes(pair.module) for pair in pairs):
            raise InvalidOption(
                f"targets: no module is called {pattern!r}",
                remedy="the end of a module's path, as q_proj, or a pattern with *",
            )


def _composed(
    targets: Sequence[Pair], options: Extraction, progress: Progress
) -> Iterator[Composed]:
    """What changed of each target."""
    for pair, done in in_order(targets, lambda pair: _truncated(pair, options), _held):
        if done is not None:
            yield done
        progress(pair.nbytes)


def _held(pair: Pair) -> int:
    return 4 * math.prod(pair.new.shape)


@default_float_mode()
def _truncated(pair: Pair, options: Extraction) -> Composed | None:
    """None where nothing changed."""
    site = of_weight(pair.module, pair.shape, embedding=pair.kind == "Embedding")
    delta = pair.delta()
    if delta is None:
        return None
    turned = delta.T if pair.transposed or site.layout == "embedding" else delta
    matrix = turned.reshape(site.shape)
    found, cut = truncated(matrix, options.rank, options.energy, sketch_seed(site.name, 0))
    return finished(site, [Made(found.factors().single())], [cut])


def _targets(done: Sequence[Composed], pairs: Sequence[Pair]) -> list[str]:
    """Last parts of the paths, where they mean these modules and no others; else the paths."""
    modules = {one.site.module for one in done}
    names = {module.rpartition(".")[2] for module in modules}
    paths = {pair.module for pair in pairs}
    paths |= {path[:n] for path in set(paths) for n, c in enumerate(path) if c == "."}
    others = {path.rpartition(".")[2] for path in paths - modules}
    return sorted(modules if names & others else names)


# --- what is known of it ----------------------------------------------------------------------


def _claim(base: Base) -> BaseClaim:
    """The base's name, where its directory has one; the commit of a snapshot in the cache."""
    of_hub = repository(base.path)
    return BaseClaim(of_hub or short_name(str(base.path)), base.path.name if of_hub else None)


def _record(base: Base, root: str) -> manifests.BaseRecord:
    claim = _claim(base)
    return manifests.BaseRecord(claim.name, claim.revision, base.structure_root, root)


def _lineage(options: Extraction, roots: tuple[str, str]) -> dict[str, Any]:
    exact = options.biases_only or options.sparse is not None
    return {
        "operation": "extract",
        "inputs": [
            {"weights_root": root, "role": role}
            for root, role in zip(roots, ("base", "finetuned"), strict=True)
        ],
        "parameters": {**asdict(options), "targets": list(options.targets), "reproducible": exact},
    }
