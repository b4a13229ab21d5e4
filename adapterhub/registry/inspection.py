"""What can be seen of an adapter, and what is wrong with it."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from adapterhub.adapter import REPLACE, Adapter, Problem, Reading
from adapterhub.errors import (
    AdapterHubError,
    InvalidAdapter,
    InvalidTensorFile,
    NotSupported,
    PickleRefused,
)
from adapterhub.methods import TABLE as METHODS
from adapterhub.methods import Ranks, method
from adapterhub.tensorfile import DTYPES, Tensor

_NUMBER = re.compile(r"(?<![^.])\d+(?![^.])")


@dataclass(frozen=True)
class Inspection:
    """`source` is a path or `name@sha256:…`. `rank` is None where the method has none, or where
    no tensors could be read. `parameters` counts elements, `bytes` is their size.
    """

    source: str
    format: str
    method: str | None
    variants: tuple[str, ...]
    rank: Mapping[str, Any] | None
    alpha: float | None
    targets: tuple[str, ...]
    saved: tuple[str, ...]
    dtype: str | None
    parameters: int | None
    bytes: int | None
    task: str | None
    labels: tuple[str, ...]
    base: Mapping[str, Any]
    files: tuple[str, ...]
    licence: str | None
    peft_version: str | None
    problems: tuple[Problem, ...]

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def inspect(reading: Reading, *, source: str, labels: tuple[str, ...] = ()) -> Inspection:
    """All that `reading` shows; its values are read too, for NaN and zeros."""
    adapter, config = reading.adapter, reading.config
    known = reading.method is not None and reading.method in METHODS
    variants = METHODS[reading.method or ""].variants(config) if known else ()
    values = value_problems(adapter) if adapter else []
    alpha = config.get("lora_alpha")
    return Inspection(
        source=source,
        format=reading.format,
        method=reading.method,
        variants=variants,
        rank=rank_summary(adapter) if adapter else None,
        alpha=alpha if isinstance(alpha, (int, float)) and not isinstance(alpha, bool) else None,
        targets=targets(adapter) if adapter else (),
        saved=saved(adapter) if adapter else (),
        dtype="+".join(adapter.dtypes) if adapter else None,
        parameters=adapter.parameters if adapter else None,
        bytes=sum(t.nbytes for _, _, t in adapter.tensors()) if adapter else None,
        task=_text(config.get("task_type")),
        labels=labels or (adapter.labels if adapter else ()),
        base={
            "name": _text(config.get("base_model_name_or_path")),
            "revision": _text(config.get("revision")),
        },
        files=tuple(file.name for file in reading.files),
        licence=reading.card.get("licence"),
        peft_version=_text(config.get("peft_version")),
        problems=(*reading.problems, *values),
    )


def _text(value: Any) -> str | None:
    return value if isinstance(value, str) and value else None


def require(reading: Reading, *, values: bool = True) -> Adapter:
    """The adapter, if nothing fatal is wrong with it. Raises the error that fits the problem.

    Without `values`, those are not read: for adapters that were checked before.
    """
    fatal = list(reading.fatal)
    if values and reading.adapter is not None:
        fatal += [p for p in value_problems(reading.adapter) if p.fatal]
    if not fatal and reading.adapter is not None:
        return reading.adapter
    raise _error(reading, fatal)


_ERRORS: Mapping[str, type[AdapterHubError]] = {
    "method": NotSupported,
    "pickle-refused": PickleRefused,
    "invalid-tensor-file": InvalidTensorFile,
}


def _error(reading: Reading, fatal: list[Problem]) -> AdapterHubError:
    """One error for all fatal problems: that of the first, with the others as details."""
    if not fatal:
        return InvalidAdapter(f"{reading.path} holds no adapter that can be read")
    first = fatal[0]
    kind = _ERRORS.get(first.code, InvalidAdapter)
    error = kind(first.message, remedy=first.remedy)
    error.details = tuple(problem.sentence() for problem in fatal[1:])
    return error


# --- summaries --------------------------------------------------------------------------------


def starred(paths: Iterable[str]) -> tuple[str, ...]:
    """Module paths with `*` for numbers, each once, sorted: `layers.0.q`, `layers.1.q` → one."""
    return tuple(sorted({_NUMBER.sub("*", path) for path in paths}))


def targets(adapter: Adapter) -> tuple[str, ...]:
    """Modules that the method changes, starred."""
    return starred(m for m, role, _ in adapter.tensors() if m and not role.startswith(REPLACE))


def saved(adapter: Adapter) -> tuple[str, ...]:
    """Modules of which whole tensors are saved, starred."""
    return starred(m for m, role, _ in adapter.tensors() if role.startswith(REPLACE))


def rank_summary(adapter: Adapter) -> dict[str, Any] | None:
    """Lowest and highest rank, and the modules that differ from the most frequent one."""
    ranks: Ranks | None = method(adapter.method).implementation.ranks(adapter)
    if ranks is None:
        return None
    usual = Counter(ranks.by_module.values()).most_common(1)[0][0]
    pattern = {m: rank for m, rank in sorted(ranks.by_module.items()) if rank != usual}
    return {"min": ranks.lowest, "max": ranks.highest, "pattern": pattern}


# --- values -----------------------------------------------------------------------------------


def value_problems(adapter: Adapter) -> list[Problem]:
    """NaN and infinities (fatal), and low-rank pairs that change nothing."""
    found: list[Problem] = []
    zeros: list[str] = []
    pairs = 0
    for module, role, tensor in adapter.tensors():
        try:
            index, zero = _scan(tensor)
        except AdapterHubError as error:
            return [*found, Problem(error.code, error.message, error.remedy, fatal=True)]
        if index is not None:
            text = f"{module}.{role} holds NaN or infinity, first at {list(index)}"
            remedy = "it diverged in training: take an earlier checkpoint"
            found.append(Problem("not-finite", text, remedy, fatal=True))
        if role.endswith(("lora_B", "lora_embedding_B")):  # base_layer.lora_B, too
            pairs += 1
            zeros += [module] if zero else []
    if zeros:
        some = "all" if len(zeros) == pairs else f"{len(zeros)} of {pairs}"
        text = f"{some} lora_B are zero: nothing was learned there (first: {zeros[0]})"
        found.append(Problem("zero-b", text, "check that training reached these modules"))
    return found


def _scan(tensor: Tensor) -> tuple[tuple[int, ...] | None, bool]:
    """Index of the first non-finite element, and whether all are zero. In bounded memory."""
    if tensor.dtype not in DTYPES:
        tensor.read()  # raises what is wrong with types that numpy lacks
    dtype, seen, zero = DTYPES[tensor.dtype], 0, True
    for piece in tensor.pieces():
        values = np.frombuffer(piece, dtype)
        finite = np.isfinite(values)
        zero = zero and not values.any()
        if not finite.all():
            place = np.unravel_index(seen + int(np.argmin(finite)), tensor.shape)
            return tuple(int(i) for i in place), False
        seen += values.size
    return None, zero
