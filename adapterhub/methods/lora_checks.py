"""Contradictions between a LoRA's config and its tensors."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping

from adapterhub.adapter import REPLACE, Adapter, Problem
from adapterhub.errors import InvalidAdapter, SchemaError
from adapterhub.methods import saved, targets
from adapterhub.methods.interface import Ranks
from adapterhub.methods.lora_config import LoraConfig, parse
from adapterhub.methods.lora_pairs import INNER, MAGNITUDE, ROLES, Pair, fit, pairs, parameters
from adapterhub.tensorfile import Tensor


def problems(adapter: Adapter) -> list[Problem]:
    try:
        config = parse(adapter.config)
    except (SchemaError, InvalidAdapter) as error:
        sentences = error.details or (error.message,)
        return [_fatal("config", f"adapter_config.json: {s}", error.remedy) for s in sentences]
    found: list[Problem] = []
    for module, roles in adapter.modules.items():
        found += _half_pairs(module, roles) + _dtype_problems(module, roles)
        found += [] if adapter.config.get("enable_lora") else _shape_problems(module, roles)
    if not adapter.modules:
        found.append(_fatal("no-tensors", "the weights hold no tensor", ""))
    elif all(role.startswith(REPLACE) for _, role, _ in adapter.tensors()):
        text = "the weights hold whole tensors only, and no LoRA pair"
        found.append(Problem("no-pairs", text, "check that the right modules were targeted"))
    found += saved.problems(adapter) + targets.problems(adapter)
    if any(problem.code == "pattern" for problem in found):
        return found
    try:
        return found + _pattern_problems(adapter, config) + _rank_problems(adapter, config)
    except InvalidAdapter as error:
        return [*found, _fatal("pattern", error.message, error.remedy)]


def _fatal(code: str, message: str, remedy: str) -> Problem:
    return Problem(code, message, remedy or "re-export the adapter", fatal=True)


def _half_pairs(module: str, roles: Mapping[str, Tensor]) -> list[Problem]:
    needs = [pair for a, b in ROLES for pair in ((a, b), (b, a))]
    found = [(role, INNER * role.count(INNER)) for role in roles]
    lacking = [
        (role, level + need)
        for role, level in found
        for have, need in needs
        if role == level + have and level + need not in roles
    ]
    # These mean nothing without a pair.
    for role in ("lora_B.bias", "lora_diag", MAGNITUDE):
        if role in roles and not any(b in roles for _, b in ROLES):
            lacking.append((role, "lora_B"))
    return [_fatal("half-pair", f"{module} has {r} but no {need}", "") for r, need in lacking]


def _dtype_problems(module: str, roles: Mapping[str, Tensor]) -> list[Problem]:
    return [
        _fatal("dtype", f"{module}.{role} is {tensor.dtype}, expected a float type", "")
        for role, tensor in roles.items()
        if not role.startswith(REPLACE) and not tensor.dtype.startswith(("F", "BF"))
    ]


def _shape_problems(module: str, roles: Mapping[str, Tensor]) -> list[Problem]:
    found = []
    for role in roles:
        for a, b in ROLES:
            level = INNER * role.count(INNER)
            one, other = roles.get(level + a), roles.get(level + b)
            if role != level + a or one is None or other is None or fit(one.shape, other.shape):
                continue
            text = (
                f"{module}: {level + a} is {list(one.shape)} and {level + b} is "
                f"{list(other.shape)}, expected (rank, in) and (out, rank)"
            )
            found.append(_fatal("shape", text, ""))
    return found + _magnitude_problems(module, roles)


def _magnitude_problems(module: str, roles: Mapping[str, Tensor]) -> list[Problem]:
    """DoRA's magnitude has a value for each output."""
    magnitude = roles.get(MAGNITUDE)
    b = next((roles[b] for _, b in ROLES if b in roles), None)
    if magnitude is None or b is None or not b.shape:
        return []
    if math.prod(magnitude.shape) == b.shape[0] == max(magnitude.shape, default=1):
        return []
    text = f"{module}: {MAGNITUDE} is {list(magnitude.shape)}, expected one value for each of the "
    return [_fatal("shape", f"{text}{b.shape[0]} outputs of lora_B", "")]


def _rank_problems(adapter: Adapter, config: LoraConfig) -> list[Problem]:
    found: list[Problem] = []
    wrong: Counter[tuple[int, int]] = Counter()
    for pair in () if adapter.config.get("enable_lora") else pairs(adapter):
        expected, rank = config.rank(pair.key), pair.a.shape[0]
        if _is_rank(rank, expected, pair):
            continue
        wrong[expected, rank] += 1
        if wrong[expected, rank] == 1:
            several = " for each of some experts" if pair.parameter else ""
            text = f"{pair.module}.{pair.roles[0]} has rank {rank}, config says r={expected}"
            found.append(_fatal("rank-mismatch", text + several, "correct `r` or re-export"))
    more = sum(wrong.values()) - len(wrong)
    if more:
        found.append(_fatal("rank-mismatch", f"{more} more modules differ in the same way", ""))
    return found


def _is_rank(rank: int, expected: int, pair: Pair) -> bool:
    """Experts' factors hold the rank of each of them."""
    return rank % expected == 0 if pair.parameter else rank == expected


def _pattern_problems(adapter: Adapter, config: LoraConfig) -> list[Problem]:
    """Values of alpha that hang on the order of the keys, which peft sorts when it saves.

    A rank that hangs on it shows in the tensors. Raises InvalidAdapter for any pattern that
    cannot be used.
    """
    keys = [module for module in adapter.modules if not parameters(adapter.config, module)]
    keys += [pair.key for pair in pairs(adapter) if pair.parameter]
    for key in keys:
        config.rank_pattern.is_ambiguous(key)
    unsure = [key for key in keys if config.alpha_pattern.is_ambiguous(key)]
    if not unsure:
        return []
    text = f"several keys of alpha_pattern match {unsure[0]} and say different values"
    return [Problem("alpha-order", text, "the first counts; peft sorts keys when it saves")]


def ranks(adapter: Adapter) -> Ranks | None:
    """By module, or by parameter where the adapter targets those."""
    try:
        config = parse(adapter.config)
        if adapter.config.get("enable_lora"):  # the shapes are those of packed factors
            by_module = {m: config.rank(m) for m, r in adapter.modules.items() if "lora_A" in r}
        else:
            by_module = {
                pair.key: config.rank(pair.key) if pair.parameter else pair.a.shape[0]
                for pair in pairs(adapter)
            }
    except (SchemaError, InvalidAdapter):
        return None  # `problems` says why
    return Ranks(by_module) if by_module else None
