"""Composing adapters that are not low-rank: tensor by tensor, those of one method only.

    average   (IA)³ vectors, biases and norms, bottlenecks, AdaMix, prompts, prefixes, MAM:
              Σ wᵢ·vᵢ / Σ wᵢ. Where an (IA)³ adapter leaves a module alone, its vector is of ones.
    sum       sparse deltas, SHiRA's too: the union of their places, Σ wᵢ·vᵢ at each
    concat    prompts and prefixes of PEFT: their tokens one after the other, in the order given

All in fp64 in the order of the inputs, rounded once to fp32, so the same bits on every machine.
The mean of (IA)³ is that of PEFT's `add_weighted_adapter`, divided by the weights; that of
bottlenecks is AdapterHub's `average_adapter` (https://arxiv.org/abs/2203.05482 for whole models).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from adapterhub.adapter import REPLACE, Adapter
from adapterhub.composing import scatter
from adapterhub.composing.building import by_module
from adapterhub.composing.factored import Matrix
from adapterhub.composing.inputs import Input
from adapterhub.composing.plan import AS_LORA, Options, Plan, checked_request
from adapterhub.composing.tensors import Place, Tensors, named, rounded, value_of
from adapterhub.composing.wholes import Wholes, wholes
from adapterhub.errors import InvalidOption, NotMergeable, NotSupported
from adapterhub.methods import Replacement
from adapterhub.methods import method as adapter_method
from adapterhub.tensorfile import ArrayTensor, Tensor

_MEANS = (
    *("ia3", "bitfit", "ln_tuning", "bottleneck", "compacter", "sparse_adapter", "adamix", "beft"),
    "mam",
)
_PROMPTS = ("prompt_tuning", "p_tuning", "prefix_tuning", "multitask_prompt_tuning")
_SPARSE = ("fishmask", "diff_pruning", "shira")
CAN: Mapping[str, tuple[str, ...]] = {
    **dict.fromkeys(_MEANS, ("average",)),
    **dict.fromkeys(_PROMPTS, ("average", "concat")),
    **dict.fromkeys(_SPARSE, ("sum", "average", "task_arithmetic")),
}
_MASK = "_mask"  # of a tensor that was pruned
# Fields that do not change what the tensors mean.
_IDLE = (
    *("name", "version", "peft_version", "inference_mode", "auto_mapping", "runtime_config"),
    *("base_model_name_or_path", "revision", "task_type", "modules_to_save", "target_modules"),
    *("feedforward_modules", "shapes", "init_ia3_weights", "model_name", "labels"),
    *("tokenizer_name_or_path", "prompt_tuning_init", "prompt_tuning_init_text", "exclude_modules"),
)


def composed(inputs: Sequence[Input], options: Options) -> tuple[Plan, Adapter]:
    """One adapter of several of one method that is not LoRA, and what was done as a plan.

    Raises NotSupported for what cannot be composed so, NotMergeable for what does not fit, and what
    `plan` raises.
    """
    row, parameters, weights, notes = checked_request(inputs, options)
    kind = _one_method(inputs, row.name)
    if options.weights or (options.rank, options.energy) != (None, None):
        raise NotSupported(
            f"{kind} adapters have one weight each, and no rank to truncate to",
            remedy="leave rank, energy and the weights of modules away",
        )
    _refuse_unlike_configs(inputs)
    own = [_own(each.adapter) for each in inputs]
    heads = wholes(inputs, weights, [_heads(each.adapter) for each in inputs], options.whole)
    if row.name == "concat":
        made, config = _concatenated(inputs, own)
    elif kind == "shira":
        made, config = scatter.scattered(inputs, weights, own)
    elif kind in _SPARSE:
        made, config = _union(inputs, weights, own)
    else:
        made, config = _mean(inputs, weights, own, kind), dict(inputs[0].adapter.config)
    told = Plan(tuple(inputs), weights, row, parameters, options, (), {}, heads, tuple(notes))
    return told, _adapter(inputs, made, config, heads)


def _one_method(inputs: Sequence[Input], method: str) -> str:
    kind = inputs[0].adapter.method
    if len({each.adapter.format for each in inputs}) > 1:
        raise NotSupported(
            f"{kind} adapters in different formats cannot be composed",
            details=[f"{each.name}: {each.adapter.format}" for each in inputs],
            remedy="compose adapters of one format",
        )
    can = CAN.get(kind, ())
    if method not in can:
        raise NotSupported(
            f"{kind} adapters cannot be composed by {method}",
            remedy=f"--method {' or '.join(can)}" if can else _otherwise(kind),
        )
    return kind


def _otherwise(kind: str) -> str:
    does = adapter_method(kind).does
    if "merge" in does:
        return AS_LORA
    return "nothing composes these" + (
        "; attach them to a model one after the other" if "attach" in does else ""
    )


def _refuse_unlike_configs(inputs: Sequence[Input]) -> None:
    first = inputs[0].adapter
    for other in inputs[1:]:
        fields = {*first.config, *other.adapter.config} - {*_IDLE, "num_virtual_tokens"}
        if first.method == "shira":
            fields -= {*scatter.CHOICE}
        differ = sorted(
            field
            for field in fields
            if (first.config.get(field) or None) != (other.adapter.config.get(field) or None)
        )
        if differ:
            raise NotMergeable(
                f"{inputs[0].name} and {other.name} differ in what their tensors mean",
                details=[
                    f"{field}: {first.config.get(field)!r}, {other.adapter.config.get(field)!r}"
                    for field in differ
                ],
                remedy="compose adapters that were trained with one config",
            )


def _is_head(adapter: Adapter, module: str, role: str) -> bool:
    """A tensor saved whole that is no bias or norm which the method trains."""
    if not role.startswith(REPLACE):
        return False
    if adapter.method not in ("bitfit", "ln_tuning", "beft"):
        return True
    roles = adapter.modules[module].items()
    return any(len(t.shape) > 1 for other, t in roles if other.startswith(REPLACE))


def _own(adapter: Adapter) -> Tensors:
    return {(m, role): t for m, role, t in adapter.tensors() if not _is_head(adapter, m, role)}


def _heads(adapter: Adapter) -> tuple[Replacement, ...]:
    return tuple(
        Replacement(module, role.removeprefix(REPLACE), tensor, role)
        for module, role, tensor in adapter.tensors()
        if _is_head(adapter, module, role)
    )


# --- means ------------------------------------------------------------------------------------


def _mean(
    inputs: Sequence[Input], weights: Sequence[float], own: Sequence[Tensors], kind: str
) -> Tensors:
    places = sorted({place for tensors in own for place in tensors})
    if kind != "ia3":
        _refuse_missing(inputs, own, places)
    if kind == "adamix":
        _refuse_unlike_scores(inputs, own, places)
    masks = {(module, role) for module, role in places if role.endswith(_MASK)}
    own = [_pruned(source, tensors) for source, tensors in zip(inputs, own, strict=True)]
    made: Tensors = {place: _either(place, own) for place in masks}
    for place in (place for place in places if place not in masks):
        shape = next(tensors[place].shape for tensors in own if place in tensors)
        total: Matrix = np.zeros(shape)
        for source, weight, tensors in zip(inputs, weights, own, strict=True):
            value = value_of(source, place, tensors[place]) if place in tensors else np.ones(shape)
            _refuse_shape(source, place, value.shape, shape)
            total += weight * value
        made[place] = rounded(place, total)
    return made


def _pruned(source: Input, tensors: Tensors) -> Tensors:
    """With what its mask takes from a tensor taken: half of a mask is not the mask of a half."""
    found = dict(tensors)
    for (module, role), mask in tensors.items():
        name = role.removesuffix(_MASK)
        for place in ((module, name), (module, f"{name}_orig")):
            if name != role and place in tensors:
                kept = value_of(source, (module, role), mask)
                _refuse_shape(source, place, tensors[place].shape, kept.shape)
                found[place] = ArrayTensor(value_of(source, place, tensors[place]) * kept)
    return found


def _either(place: Place, own: Sequence[Tensors]) -> ArrayTensor:
    """What any of the masks leaves."""
    masks = [np.asarray(tensors[place].read()) != 0 for tensors in own]
    return ArrayTensor(np.any(np.broadcast_arrays(*masks), axis=0).astype(np.float32))


def _refuse_missing(
    inputs: Sequence[Input], own: Sequence[Tensors], places: Sequence[Place]
) -> None:
    missing = [
        f"{source.name}: {named(place)}"
        for source, tensors in zip(inputs, own, strict=True)
        for place in places
        if place not in tensors
    ]
    if missing:
        raise NotMergeable(
            "these adapters do not have the same tensors, and nothing tells what stands for those "
            "that are missing",
            details=missing,
            remedy="compose adapters that were trained with one config",
        )


def _refuse_unlike_scores(
    inputs: Sequence[Input], own: Sequence[Tensors], places: Sequence[Place]
) -> None:
    """A mean of experts is the mean of the mixtures where all mix them alike, by their softmax."""
    for place in places:
        if not place[1].endswith("expert_score_weight"):
            continue
        scores = [value_of(s, place, t[place]) for s, t in zip(inputs, own, strict=True)]
        if any(not np.array_equal(each, scores[0]) for each in scores):
            raise NotMergeable(
                f"{named(place)} differs between these adapters, which weigh their experts "
                "differently: the mean of the experts is not that of the adapters",
                details=[f"{s.name}: {x.tolist()}" for s, x in zip(inputs, scores, strict=True)],
                remedy="average the experts of each by its scores first: one bottleneck each",
            )


def _refuse_shape(
    source: Input, place: Place, found: tuple[int, ...], wanted: tuple[int, ...]
) -> None:
    if found != wanted:
        raise NotMergeable(
            f"{named(place)} is {list(found)} in {source.name}, {list(wanted)} in another",
            remedy="compose adapters of one base, trained with one config",
        )


# --- sparse deltas ----------------------------------------------------------------------------


def _union(
    inputs: Sequence[Input], weights: Sequence[float], own: Sequence[Tensors]
) -> tuple[Tensors, dict[str, Any]]:
    """Where any of them changes something, the weighted sum of what they add there."""
    made: Tensors = {}
    for place in sorted({place for tensors in own for place in tensors}):
        module, role = place
        if not role.endswith(".indices"):
            continue
        values = (module, f"{role.removesuffix('.indices')}.values")
        indices, total = _added_up(inputs, weights, own, place, values)
        made[place], made[values] = ArrayTensor(indices), rounded(values, total)
    return made, _shapes(inputs)


def _added_up(
    inputs: Sequence[Input],
    weights: Sequence[float],
    own: Sequence[Tensors],
    place: Place,
    values: Place,
) -> tuple[Matrix, Matrix]:
    found = [
        (source, weight, np.asarray(tensors[place].read()), tensors[values])
        for source, weight, tensors in zip(inputs, weights, own, strict=True)
        if place in tensors
    ]
    indices: Matrix = np.unique(np.concatenate([where for _, _, where, _ in found]))
    total: Matrix = np.zeros(len(indices))
    for source, weight, where, tensor in found:
        total[np.searchsorted(indices, where)] += weight * value_of(source, values, tensor)
    return indices, total


def _shapes(inputs: Sequence[Input]) -> dict[str, Any]:
    shapes: dict[str, Any] = {}
    for source in inputs:
        for name, shape in source.adapter.config["shapes"].items():
            if shapes.setdefault(name, shape) != shape:
                raise NotMergeable(
                    f"{name} is {shape} in {source.name}, {shapes[name]} in another",
                    remedy="compose adapters of one base",
                )
    return {**inputs[0].adapter.config, "shapes": dict(sorted(shapes.items()))}


# --- prompts ----------------------------------------------------------------------------------


def _concatenated(
    inputs: Sequence[Input], own: Sequence[Tensors]
) -> tuple[Tensors, dict[str, Any]]:
    """The tokens of each after those of the one before; an encoder's and a decoder's apart."""
    _refuse_for_rows(inputs)
    places = {place for tensors in own for place in tensors}
    if len(places) != 1:
        raise NotSupported(
            "concat takes prompts of one matrix",
            details=sorted(map(named, places)),
            remedy="--method average",
        )
    place = places.pop()
    tokens = [_tokens(s, tensors[place]) for s, tensors in zip(inputs, own, strict=True)]
    blocks = {tensors[place].shape[0] // n for n, tensors in zip(tokens, own, strict=True)}
    widths = {tensors[place].shape[1:] for tensors in own}
    if len(widths) > 1 or len(blocks) > 1:
        raise NotMergeable("these prompts differ in width", remedy="compose prompts of one base")
    values = [value_of(s, place, tensors[place]) for s, tensors in zip(inputs, own, strict=True)]
    parts = [
        value[block * n : (block + 1) * n]
        for block in range(blocks.pop())
        for n, value in zip(tokens, values, strict=True)
    ]
    config = {**inputs[0].adapter.config, "num_virtual_tokens": sum(tokens)}
    return {place: rounded(place, np.concatenate(parts))}, config


def _refuse_for_rows(inputs: Sequence[Input]) -> None:
    """Raises InvalidOption for weights, NotSupported for formats whose prompts are no rows."""
    for source in inputs:
        if source.weight != 1:
            raise InvalidOption(
                f"concat puts tokens one after the other; {source.name} has the weight "
                f"{source.weight:g}",
                remedy="leave the weights away",
            )
        if source.adapter.format not in ("peft", "t5x_prompt"):
            raise NotSupported(
                f"{source.name} is in the format {source.adapter.format}, whose prompts this "
                "version does not concatenate",
                remedy="--method average",
            )


def _tokens(source: Input, tensor: Tensor) -> int:
    """Rows of one submodule: a decoder may have rows of its own behind the encoder's."""
    told = source.adapter.config.get("num_virtual_tokens")
    rows = tensor.shape[0]
    return int(told) if isinstance(told, int) and told > 0 and rows % told == 0 else rows


def _adapter(
    inputs: Sequence[Input], made: Tensors, config: Mapping[str, Any], heads: Wholes
) -> Adapter:
    first = inputs[0].adapter
    lists = {
        field: _listed(inputs, field)
        for field in ("target_modules", "feedforward_modules", "modules_to_save")
        if any(isinstance(each.adapter.config.get(field), list) for each in inputs)
    }
    return replace(
        first,
        config={**config, **lists},
        modules=by_module({**made, **heads.tensors}),
        task=heads.task,
        labels=heads.labels,
    )


def _listed(inputs: Sequence[Input], field: str) -> Any:
    """The union of what the inputs list; a pattern of one cannot be joined with others'."""
    values = [each.adapter.config.get(field) for each in inputs]
    if all(isinstance(value, list) or value is None for value in values):
        return sorted({str(name) for value in values for name in value or ()})
    if all(value == values[0] for value in values):
        return values[0]
    raise NotMergeable(
        f"the adapters give their {field} as different patterns",
        remedy="re-export them with lists of names",
    )
