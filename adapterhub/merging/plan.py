"""The plan of a merge: for every output tensor, what to do. Pure; reads no tensor values."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from adapterhub.base import Base, fingerprints
from adapterhub.errors import BaseMismatch, InvalidOption
from adapterhub.kernels.floatmode import default_float_mode
from adapterhub.merging import companions, parts, tokenizers, vocabulary
from adapterhub.merging.draft import Draft
from adapterhub.merging.quantised import quantiser, refuse_quantised
from adapterhub.merging.ties import refuse_unknown
from adapterhub.merging.work import Fate, MergePlan, Options, Source, Term, Work
from adapterhub.methods import Meaning
from adapterhub.registry.fit import Naming, mismatches, refuse, target_class
from adapterhub.registry.tied import seen, spread
from adapterhub.tensorfile import FileTensor, ShardLayout, Spec, lay_out, plan_shards

__all__ = ["Fate", "MergePlan", "Options", "Source", "Term", "Work", "plan"]


@default_float_mode()  # for the coefficients
def plan(base: Base, sources: Sequence[Source], options: Options | None = None) -> MergePlan:
    """Decide everything. Raises NotMergeable or BaseMismatch, with every mismatch listed."""
    options = options or Options()
    if not sources:
        raise InvalidOption("no adapter was given", remedy="name at least one adapter")
    meanings = [parts.meaning(base, source, options) for source in sources]
    _refuse_misfits(base, sources, meanings)
    pairs = [(s.adapter, meaning) for s, meaning in zip(sources, meanings, strict=True)]
    target = target_class(base, pairs)
    naming = Naming(seen(base, target or base.model_class, pairs), target)
    draft = _drafted(naming, sources, meanings, options)
    works, left_out = draft.works()
    _check_complete(naming, works)
    tokens = vocabulary.size(base, naming, works)
    rows = vocabulary.rows(base, naming, works)
    tokenizer, said = tokenizers.chosen(base, sources, rows)
    return MergePlan(
        base=base,
        sources=tuple(sources),
        options=options,
        works=works,
        shards=_shards(base, works, options),
        fates=(*draft.fates(), *parts.idle(sources)),
        left_out=left_out,
        model_class=naming.result.name if naming.result else None,
        config=companions.config(
            naming,
            works,
            companions.Changes(_labels(draft), options.dtype, tokens, draft.settled.untied),
        ),
        companions=companions.files(base, tokenizer),
        notes=(*_notes(base), *parts.notes(sources), *_others(works), *draft.settled.notes, *said),
        adapter_files=_adapter_files(sources),
    )


def _drafted(
    naming: Naming, sources: Sequence[Source], meanings: Sequence[Meaning], options: Options
) -> Draft:
    draft = Draft(naming, sources, options)
    for number, meaning in enumerate(meanings):
        refuse_unknown(naming, meaning)
        for part in meaning:
            draft.add(number, part)
        adapter = sources[number].adapter
        for part in spread(naming, adapter, meaning, naming.result, draft.same):
            draft.add_spread(number, part)
    draft.refuse_conflicts()
    return draft


def _refuse_misfits(base: Base, sources: Sequence[Source], meanings: Sequence[Meaning]) -> None:
    """Everything that does not fit, of all adapters, in one error."""
    found = []
    for source, meaning in zip(sources, meanings, strict=True):
        refuse_quantised(base, meaning)
        sentences = mismatches(base, source.adapter, meaning)
        whose = f"{source.name}: " if len(sources) > 1 else ""
        found += [f"{whose}{sentence}" for sentence in sentences]
    refuse(base, ", ".join(source.name for source in sources), found)


def _labels(draft: Draft) -> Sequence[str]:
    """Those of the adapter that brings the head; if none does, the first that has any."""
    providers = {number for _, numbers in draft.replacements.values() for number in numbers}
    ordered = sorted(range(len(draft.sources)), key=lambda number: number not in providers)
    whole = [number for number in ordered if draft.sources[number].part is None]
    found = (draft.sources[number].adapter.labels for number in whole)
    return next((labels for labels in found if labels), ())


def _adapter_files(sources: Sequence[Source]) -> Mapping[Path, list[int]]:
    tensors = [tensor for source in sources for _, _, tensor in source.adapter.tensors()]
    paths = {tensor.path for tensor in tensors if isinstance(tensor, FileTensor)}
    brought = [path for source in sources for path in source.tokenizer.values()]
    return fingerprints(sorted({*paths, *brought}))


def _notes(base: Base) -> tuple[str, ...]:
    notes = []
    if base.architecture is None:
        notes.append(f"model_type {base.model_type!r} is not known: names compared as they stand")
    if base.config.get("auto_map"):
        notes.append("the base brings code of its own (auto_map), which was not copied")
    if base.config.get("quantization_config"):
        notes.append(f"the base is quantised ({quantiser(base)}), but not where it is changed")
    return tuple(notes)


def _others(works: Mapping[str, Work]) -> Iterator[str]:
    """Whose arithmetic it is, where it is not our own, or not in an order of our own."""
    counts = Counter(whose for work in works.values() if (whose := work.computed_by))
    for whose, count in sorted(counts.items()):
        tensors = "1 tensor is" if count == 1 else f"{count} tensors are"
        yield f"{tensors} computed by {whose}, which repeats itself to a tolerance only"


def _check_complete(naming: Naming, works: Mapping[str, Work]) -> None:
    """A changed class must have all of its tensors, or loading would invent them."""
    if naming.target is None:
        return
    needed = [
        f"{module}.{parameter}"
        for module, kind in sorted(naming.target.modules.items())
        if "*" not in module
        for parameter in kind.parameters
        if parameter not in kind.optional
    ]
    missing = [name for name in needed if name not in works and name not in naming.ties]
    if missing:
        raise BaseMismatch(
            f"a {naming.target.name} needs tensors that neither base nor adapter has",
            details=missing,
            remedy="train with modules_to_save naming the whole head, or give a base that has them",
        )


def _shards(base: Base, works: Mapping[str, Work], options: Options) -> tuple[ShardLayout, ...]:
    specs = [Spec(work.name, work.dtype, work.shape) for work in works.values()]
    if options.max_shard_bytes is not None:
        return plan_shards(specs, max_shard_bytes=options.max_shard_bytes)
    return _layout_of(base, works)


def _layout_of(base: Base, works: Mapping[str, Work]) -> tuple[ShardLayout, ...]:
    """The base's own files; tensors that it lacks stand at the end of the last one."""
    files = [path.name for path in base.checkpoint.files]
    groups: dict[str, list[Spec]] = {name: [] for name in files}
    for work in works.values():
        home = base.tensors[work.stored].path.name if work.stored else files[-1]
        groups[home].append(Spec(work.name, work.dtype, work.shape))
    return tuple(lay_out(name, specs) for name, specs in groups.items() if specs)
