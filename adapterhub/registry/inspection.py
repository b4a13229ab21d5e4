"""What can be seen of an adapter, and what is wrong with it."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from adapterhub import known_bases
from adapterhub.adapter import REPLACE, Adapter, BaseClaim, Outline, Problem, Reading
from adapterhub.errors import (
    AdapterHubError,
    InvalidAdapter,
    InvalidTensorFile,
    NotSupported,
    PickleRefused,
    UnknownFormat,
)
from adapterhub.formats.claims import claim, quantization_named
from adapterhub.methods import TABLE as METHODS
from adapterhub.registry import figures
from adapterhub.registry.figures import rank_summary
from adapterhub.registry.identify import Candidate, Identification
from adapterhub.registry.modality import modality
from adapterhub.registry.values import value_problems
from adapterhub.tensorfile import shown

__all__ = ["Inspection", "inspect", "rank_summary", "require", "saved", "starred", "targets"]

_NUMBER = re.compile(r"(?<![^.])\d+(?![^.])")
# kohya and LyCORIS write `_` for every dot.
_FLAT = re.compile(r"(?:lora|lycoris)_[^.]*")
_FLAT_NUMBER = re.compile(r"(?<=_)\d+(?=_|$)")


@dataclass(frozen=True)
class Inspection:
    """`source` is a path or `name@sha256:…`. `rank` is None where the method has none; its
    `declared` is what the config says, and its `min` and `max` are None where no tensors tell.
    `scaling` is what the change of a module is multiplied by. `targets` and `saved` are those of
    the tensors, or else as the config names them. `parameters` counts elements, `bytes` is their
    size. `base` is what the adapter declares: name, revision, and how it was
    quantised in training; `candidates` are the bases that it fits, the best first, and `fits` says
    so in a sentence.
    """

    source: str
    format: str
    method: str | None
    variants: tuple[str, ...]
    rank: Mapping[str, Any] | None
    alpha: float | None
    scaling: Mapping[str, Any] | None
    targets: tuple[str, ...]
    saved: tuple[str, ...]
    dtype: str | None
    parameters: int | None
    bytes: int | None
    task: str | None
    labels: tuple[str, ...]
    modality: str | None
    base: Mapping[str, Any]
    candidates: tuple[Candidate, ...]
    fits: str | None
    files: tuple[str, ...]
    licence: str | None
    peft_version: str | None
    problems: tuple[Problem, ...]

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def inspect(
    reading: Reading,
    *,
    source: str,
    labels: tuple[str, ...] = (),
    identify: Callable[[Adapter], Identification] | None = None,
) -> Inspection:
    """All that `reading` shows; its values are read too, for NaN and zeros."""
    adapter, config = reading.adapter, reading.config
    outline = reading.outline or Outline()
    known = reading.method is not None and reading.method in METHODS
    found = identify(adapter) if identify and adapter else None
    problems = [*reading.problems, *(value_problems(adapter) if adapter else ())]
    problems += _misfit(found) if found else []
    tensors = tuple(reading.tensors.values())
    if adapter is not None and not tensors:
        tensors = tuple(tensor for _, _, tensor in adapter.tensors())
    base = adapter.base if adapter else _claim(config, outline)
    alpha = figures.effective_alpha(reading.method, config)
    return Inspection(
        source=source,
        format=reading.format,
        method=reading.method,
        variants=METHODS[reading.method or ""].variants(config) if known else (),
        rank=figures.rank(reading.method, adapter, outline, config),
        alpha=outline.alpha if alpha is None else alpha,
        scaling=figures.scaling(reading.method, adapter, outline, config),
        targets=(targets(adapter) if adapter else starred(outline.targets))
        or figures.names(config.get("target_modules")),
        saved=saved(adapter) if adapter else figures.names(config.get("modules_to_save")),
        dtype="+".join(sorted({t.dtype for t in tensors})) or None,
        parameters=sum(math.prod(t.shape) for t in tensors) if tensors else outline.parameters,
        bytes=sum(t.nbytes for t in tensors) if tensors else None,
        task=_text(config.get("task_type")) or (adapter.task if adapter else None),
        labels=labels or (adapter.labels if adapter else ()),
        modality=modality(
            _model_types(found),
            config,
            adapter.modules if adapter else outline.targets,
            _declared_type(base.name),
        ),
        base={
            "name": base.name,
            "revision": base.revision,
            "quantization": base.quantization or quantization_named(base.name),
        },
        candidates=found.candidates if found else (),
        fits=found.sentence if found and not found.nothing_told else None,
        files=tuple(file.name for file in reading.files),
        licence=reading.card.get("licence"),
        peft_version=_text(config.get("peft_version")),
        problems=tuple(problems),
    )


def _model_types(found: Identification | None) -> tuple[str, ...]:
    """Of the known bases that fit best, where that is more than a width."""
    if found is None or not found.candidates or found.candidates[0].sure == "width":
        return ()
    types = known_bases.model_types()
    return tuple(types[name] for name in found.candidates[0].known)


def _declared_type(name: str | None) -> str | None:
    """Of the base that the adapter names, if the catalogue has it."""
    found = known_bases.named(name) if name else None
    return found.base.model_type if found else None


def _misfit(found: Identification) -> list[Problem]:
    said = found.declared
    if said is None or said.fits is not False:
        return []
    text = f"the config names the base {shown(said.text)}, but {said.why_not}"
    return [Problem("base-misfit", text, "see what it fits: adapterhub base identify ADAPTER")]


def unreadable(path: Path, error: AdapterHubError) -> Inspection:
    """Of what no format recognises, or what cannot be opened: only the problem is known."""
    problem = Problem(error.code, error.message, error.remedy, fatal=True)
    reading = Reading(path, "unknown", None, {}, None, (), (problem,))
    return inspect(reading, source=str(path))


def _claim(config: Mapping[str, Any], outline: Outline) -> BaseClaim:
    found = claim(config)
    return outline.base if found.name is None and outline.base.name else found


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
    "format": NotSupported,
    "unknown-format": UnknownFormat,
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
    """Module paths with `*` for numbers, each once, sorted: `layers.0.q`, `layers.1.q` → one.

    What belongs to the whole model, like a prompt, has no path.
    """
    return tuple(sorted({_starred(path) for path in paths if path}))


def _starred(path: str) -> str:
    number = _FLAT_NUMBER if _FLAT.fullmatch(path) else _NUMBER
    return number.sub("*", path)


def targets(adapter: Adapter) -> tuple[str, ...]:
    """Modules that the method changes, starred."""
    return starred(m for m, role, _ in adapter.tensors() if m and not role.startswith(REPLACE))


def saved(adapter: Adapter) -> tuple[str, ...]:
    """Modules of which whole tensors are saved, starred."""
    return starred(m for m, role, _ in adapter.tensors() if role.startswith(REPLACE))
