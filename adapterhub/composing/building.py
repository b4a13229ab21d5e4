"""A LoRA in PEFT's format, from the factors of its modules and the tensors that it saves whole."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from adapterhub.adapter import Adapter, BaseClaim
from adapterhub.composing.run import Composed
from adapterhub.errors import InvalidAdapter, NotSupported, SchemaError
from adapterhub.methods.lora_config import parse
from adapterhub.methods.lora_pairs import MAGNITUDE
from adapterhub.tensorfile import ArrayTensor, Tensor


@dataclass(frozen=True)
class Parts:
    """`wholes`: (module, role) → a tensor as it is. `tokens`: module → those of its `token_rows`.

    `fields`: of the config, those that do not follow from the factors; PEFT's defaults where they
    are missing.
    """

    composed: Sequence[Composed]
    wholes: Mapping[tuple[str, str], Tensor]
    base: BaseClaim
    fields: Mapping[str, Any]
    tokens: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    task: str | None = None
    labels: tuple[str, ...] = ()


def lora(parts: Parts) -> Adapter:
    """A LoRA whose config gives each module its rank and scale.

    Raises NotSupported where they are more, or larger, than a config that can be read holds.
    """
    modules: dict[str, dict[str, Tensor]] = {}
    for one in parts.composed:
        roles = modules.setdefault(one.site.module, {})
        roles[one.site.roles[0]] = ArrayTensor(one.a)
        roles[one.site.roles[1]] = ArrayTensor(one.b)
        if one.bias is not None:
            roles["lora_B.bias"] = ArrayTensor(one.bias)
        if found := magnitude(one):
            roles[MAGNITUDE] = found
    for (module, role), tensor in parts.wholes.items():
        modules.setdefault(module, {})[role] = tensor
    return Adapter(
        method="lora",
        format="peft",
        config=_readable(_config(parts)),
        modules=modules,
        base=parts.base,
        task=parts.task,
        labels=parts.labels,
    )


def by_module(tensors: Mapping[tuple[str, str], Tensor]) -> dict[str, dict[str, Tensor]]:
    """(module, role) → a tensor, as an Adapter has them: module → role → tensor."""
    modules: dict[str, dict[str, Tensor]] = {}
    for (module, role), tensor in tensors.items():
        modules.setdefault(module, {})[role] = tensor
    return modules


def magnitude(one: Composed) -> Tensor | None:
    """DoRA's, of a site that one adapter alone adds to and that is as it was."""
    terms = one.site.terms
    return terms[0].part.magnitude if len(terms) == 1 else None


def _readable(config: dict[str, Any]) -> dict[str, Any]:
    try:
        parse(config)
    except (SchemaError, InvalidAdapter) as error:
        raise NotSupported(
            "the result does not fit into the config of a LoRA",
            details=error.details or (error.message,),
            remedy="give all modules one rank: --rank; or compose fewer adapters, with smaller "
            "weights",
        ) from error
    return config


def _config(parts: Parts) -> dict[str, Any]:
    """PEFT's fields, in PEFT's spelling."""
    composed = parts.composed
    rank = Counter(one.rank for one in composed).most_common(1)[0][0] if composed else 8
    alphas = {one.site.name: one.scale * one.rank for one in composed}
    usual = [alphas[one.site.name] for one in composed if one.rank == rank]
    alpha = Counter(usual).most_common(1)[0][0] if usual else rank
    modules = sorted({one.site.module for one in composed if one.site.parameter is None})
    return {
        "peft_type": "LORA",
        "auto_mapping": None,
        "inference_mode": True,
        "r": rank,
        "lora_alpha": _whole_number(alpha),
        "rank_pattern": {_key(o.site.name): o.rank for o in composed if o.rank != rank},
        "alpha_pattern": {
            _key(name): _whole_number(value) for name, value in alphas.items() if value != alpha
        },
        "lora_dropout": 0.0,
        "bias": "none",
        "fan_in_fan_out": False,
        "use_rslora": False,
        "use_dora": any(magnitude(one) for one in composed),
        "lora_bias": any(one.bias is not None for one in composed),
        "init_lora_weights": True,
        "target_modules": modules,
        "target_parameters": None,
        "modules_to_save": None,
        "trainable_token_indices": _tokens(parts),
        **parts.fields,
    }


def _whole_number(value: float) -> float | int:
    return int(value) if value == int(value) else value


def _key(name: str) -> str:
    """A pattern that PEFT matches with this module alone."""
    return "^" + re.escape(name)


def exactly(modules: Iterable[str]) -> str:
    """A `target_modules` that PEFT matches with these modules alone.

    A list would not do: a path in it is also the ending of longer ones. What modules have in common
    is written once, so that a model of many layers has a short pattern.
    """
    return _paths([module.split(".") for module in modules])


def _paths(paths: Iterable[Sequence[str]]) -> str:
    tails: dict[str, list[Sequence[str]]] = {}
    for path in paths:
        tails.setdefault(path[0], []).append(path[1:])
    alike: dict[str, list[str]] = {}
    for name, rests in tails.items():
        inner = [rest for rest in rests if rest]
        tail = rf"\.{_paths(inner)}" if inner else ""
        if inner and len(inner) < len(rests):  # a module, and one inside it
            tail = f"(?:{tail})?"
        alike.setdefault(tail, []).append(re.escape(name))
    return _one_of([_one_of(names) + tail for tail, names in alike.items()])


def _one_of(patterns: Sequence[str]) -> str:
    return patterns[0] if len(patterns) == 1 else f"(?:{'|'.join(patterns)})"


def _tokens(parts: Parts) -> dict[str, list[int]] | None:
    found = {module: list(tokens) for module, tokens in sorted(parts.tokens.items())}
    return found or None
