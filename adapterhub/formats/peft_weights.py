"""The weights beside an adapter_config.json: safetensors, a pickle, or both with equal values."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from adapterhub.adapter import Problem, SourceFile
from adapterhub.errors import AdapterHubError
from adapterhub.formats import peft_sight, pickles
from adapterhub.formats.roots import digests_of, tensors_root
from adapterhub.formats.sight import Sight
from adapterhub.tensorfile import Tensor, read_header, shown

WEIGHTS = "adapter_model.safetensors"
PICKLE = "adapter_model.bin"
# Names, shapes and the archive's own records, for as many tensors as an adapter may have.
_OVERHEAD_BYTES = 64 * 1024 * 1024

Weights = tuple[SourceFile, Mapping[str, Tensor]]


def read_weights(sight: Sight, *, allow_pickle: bool) -> tuple[Weights | None, list[Problem]]:
    directory = sight.directory
    if sight.file is not None:
        return None, peft_sight.alone(sight)
    safe, pickle = directory / WEIGHTS, directory / PICKLE
    if not safe.is_file() and not pickle.is_file():
        text = f"{directory} has no {WEIGHTS}"
        return None, [_fatal("no-weights", text, "copy the weights beside the config")]
    try:
        if safe.is_file():
            tensors: Mapping[str, Tensor] = read_header(safe).tensors
            both = [_compared(tensors, safe, pickle)] if pickle.is_file() else []
            return (SourceFile(WEIGHTS, safe, "weights"), tensors), both
        return (
            SourceFile(PICKLE, pickle, "weights"),
            pickles.with_consent(pickle, allow_pickle),
        ), []
    except AdapterHubError as error:
        return None, [_fatal(error.code, error.message, error.remedy)]


def _fatal(code: str, message: str, remedy: str) -> Problem:
    return Problem(code, message, remedy, fatal=True)


def _compared(tensors: Mapping[str, Tensor], safe: Path, pickle: Path) -> Problem:
    """What to say of a pickle beside `tensors`, the content of `safe`.

    It is read for this without consent, by torch's loader that builds tensors and refuses all
    else: the values are compared and dropped, and an adapter with two contents goes unnoticed
    otherwise.
    """
    if pickle.stat().st_size > 2 * safe.stat().st_size + _OVERHEAD_BYTES:
        return _unlike(f"{PICKLE} is many times as large, and is not read", tensors, None)
    try:
        others = pickles.load(pickle)
    except AdapterHubError as error:
        text = f"beside {WEIGHTS} lies {PICKLE}, whose content is not known: {error.message}"
        return _fatal("two-weights", text, f"remove {PICKLE} if it is out of date")
    if difference := _first_difference(tensors, others):
        return _unlike(difference, tensors, others)
    text = f"both {WEIGHTS} and {PICKLE} are present; {PICKLE} is left aside"
    return Problem("two-weights", text, f"remove {PICKLE}")


def _unlike(
    difference: str, tensors: Mapping[str, Tensor], others: Mapping[str, Tensor] | None
) -> Problem:
    other = "" if others is None else f" ({tensors_root(others)})"
    text = f"{WEIGHTS} ({tensors_root(tensors)}) and {PICKLE}{other} differ: {difference}"
    return _fatal("two-weights", text, "remove the one that is out of date")


def _first_difference(tensors: Mapping[str, Tensor], others: Mapping[str, Tensor]) -> str:
    """In the order of the names, values last; "" if there is none."""
    for name in sorted(tensors.keys() | others.keys()):
        if name not in tensors or name not in others:
            return f"only {WEIGHTS if name in tensors else PICKLE} has {shown(name)}"
        one, other = _kind(tensors[name]), _kind(others[name])
        if one != other:
            return f"{shown(name)} is {one} in the first and {other} in the second"
    values, theirs = digests_of(tensors), digests_of(others)
    unlike = sorted(name for name in values if values[name] != theirs[name])
    return f"{shown(unlike[0])} has other values" if unlike else ""


def _kind(tensor: Tensor) -> str:
    return f"{tensor.dtype} {list(tensor.shape)}"
