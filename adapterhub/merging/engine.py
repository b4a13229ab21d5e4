"""Runs a plan: tensor by tensor from the base to `<out>.partial`, fsync, rename.

It decides nothing and never holds more than one tensor and its factors. A killed merge leaves a
directory whose name ends in `.partial` and which has no config.json until all weights are whole,
so that nothing loads it by mistake; the next merge to the same place starts it anew. Killed right
after the rename it leaves a whole result, with an empty hidden file beside it.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np

from adapterhub import digest, kernels
from adapterhub.base import changed_file
from adapterhub.errors import (
    AdapterHubError,
    IntegrityError,
    InvalidAdapter,
    InvalidBase,
    NotMergeable,
)
from adapterhub.kernels.operands import check_finite
from adapterhub.merging.output import partial_directory, publish, sync, write
from adapterhub.merging.work import MergePlan, Term, Work
from adapterhub.tensorfile import DTYPES, ArrayTensor, ShardLayout, Tensor, index_json

Progress = Callable[[int], None]
INDEX = "model.safetensors.index.json"
DIVERGED = "this adapter diverged in training; take an earlier checkpoint"
FLOATS = ("F32", "F16", "BF16")


@dataclass(frozen=True)
class Written:
    """D of every output tensor, and sha256 of every other file."""

    digests: Mapping[str, bytes]
    files: Mapping[str, str]


def run(
    plan: MergePlan,
    out: Path,
    *,
    base_digests: Mapping[str, bytes],
    describe: Callable[[Written], bytes],
    progress: Progress | None = None,
) -> Written:
    """Write the merge to `out`. `describe` makes adapterhub.json, the last file to be written.

    Raises OutputError (not empty, disk full, no permission) and whatever the values refuse with;
    either way nothing is left behind.
    """
    out = out.absolute()
    with partial_directory(out, plan.write_bytes) as directory:
        digests, files = _write_shards(plan, directory, base_digests, progress)
        files |= _write_small_files(plan, directory)
        _check_inputs(plan)
        written = Written(digests, dict(sorted(files.items())))
        write(directory / "adapterhub.json", describe(written))
        publish(directory, out)
    return written


def _check_inputs(plan: MergePlan) -> None:
    """What was written is only worth its report if the inputs stayed what they were."""
    plan.base.check_unchanged()
    if changed := changed_file(plan.adapter_files):
        raise InvalidAdapter(
            f"{changed} changed while it was in use", remedy="wait for its writer, try again"
        )


# --- weights ----------------------------------------------------------------------------------


def _write_shards(
    plan: MergePlan,
    directory: Path,
    base_digests: Mapping[str, bytes],
    progress: Progress | None,
) -> tuple[dict[str, bytes], dict[str, str]]:
    """D of every tensor, and sha256 of the index if there is one."""
    digests: dict[str, bytes] = {}
    for shard in plan.shards:
        with (directory / shard.filename).open("xb") as file:
            file.write(shard.header)
            for spec in shard.specs:
                work = plan.works[spec.name]
                digests[work.name] = _write_tensor(work, plan, file, base_digests)
                if progress:
                    progress(spec.nbytes)
            sync(file)
        _check_size(directory / shard.filename, shard)
    if [shard.filename for shard in plan.shards] == ["model.safetensors"]:
        return digests, {}
    index = index_json(plan.shards)
    write(directory / INDEX, index)
    return digests, {INDEX: digest.of_bytes(index)}


def _write_tensor(
    work: Work, plan: MergePlan, file: BinaryIO, base_digests: Mapping[str, bytes]
) -> bytes:
    hasher = digest.TensorHasher()
    for piece in compute(work, plan).pieces():
        file.write(piece)
        hasher.update(piece)
    found = hasher.digest()
    if work.is_copy and work.stored is not None and found != base_digests[work.stored]:
        raise InvalidBase(
            f"{work.stored} of {plan.base.path} changed while it was being merged",
            remedy="wait for its writer, then merge again",
        )
    return found


def _check_size(path: Path, shard: ShardLayout) -> None:
    size = path.stat().st_size
    if size != shard.nbytes:
        raise IntegrityError(f"{path.name} has {size:,} bytes, the plan said {shard.nbytes:,}")


def compute(work: Work, plan: MergePlan) -> Tensor:
    """The output tensor of one piece of work: the base's own, or its new values."""
    if work.is_copy:
        return work.value
    try:
        return ArrayTensor(_new_values(work))
    except kernels.NonFinite as error:
        raise _explained(error, work, plan) from error


def _new_values(work: Work) -> np.ndarray:
    """A replacement, a cast or a merge, rounded once."""
    dtype = DTYPES[work.dtype]
    value = work.value.read()
    if work.value.dtype in FLOATS:
        check_finite(value.reshape(-1), "weight")
    if value.dtype != dtype:
        value = value.astype(np.float32)  # exact: from fp16 or bf16
    if work.terms:
        value = _apply(work, value)
    return value if value.dtype == dtype else kernels.round_to(value, dtype)


def _apply(work: Work, value: np.ndarray) -> np.ndarray:
    """`value` plus the terms, in its own dtype and shape."""
    if work.terms[0].a is None:
        return kernels.add_scaled(value, [(t.scale, _fp32(t.b)) for t in work.terms])
    merged = kernels.merge_low_rank(_logical(value, work), [_factor(t) for t in work.terms])
    return (
        np.ascontiguousarray(merged.T) if work.slabs[0].transposed else merged.reshape(value.shape)
    )


def _logical(value: np.ndarray, work: Work) -> np.ndarray:
    """The formula's (out, in) of a weight as stored."""
    return value.T if work.slabs[0].transposed else _flat(value)


def _flat(array: np.ndarray) -> np.ndarray:
    """(n, …) → (n, product of the rest), also where one of them is 0."""
    return array.reshape(array.shape[0], math.prod(array.shape[1:]))


def _factor(term: Term) -> kernels.Factor:
    if term.a is None:
        raise NotMergeable(f"{term.key}: a bias cannot be added to a matrix")
    return kernels.Factor(a=_flat(_fp32(term.a)), b=_flat(_fp32(term.b)), scale=term.scale)


def _fp32(tensor: Tensor) -> np.ndarray:
    return tensor.read().astype(np.float32, copy=False)


# --- values that are refused ------------------------------------------------------------------


def _explained(error: kernels.NonFinite, work: Work, plan: MergePlan) -> AdapterHubError:
    """The kernel's terse fact, with the names that it does not know."""
    if error.operand == "result":
        where = _stored_index(error.index, work)
        return NotMergeable(
            f"{work.name} at {where}: the result does not fit {work.dtype}",
            remedy="--dtype float32, or a smaller weight for the adapter",
        )
    if error.factor is not None:
        return _bad_factor(error, work.terms[error.factor], plan)
    place = _unravelled(error.index[0], work.value.shape)
    if work.replaces:
        return InvalidAdapter(
            f"the adapter's {work.name} at {place} is NaN or infinite", remedy=DIVERGED
        )
    return InvalidBase(
        f"{work.stored} at {place} of the base is NaN or infinite",
        remedy="get the base anew; a merge would spread the damage",
    )


def _bad_factor(error: kernels.NonFinite, term: Term, plan: MergePlan) -> InvalidAdapter:
    tensor = term.a if error.operand == "a" and term.a is not None else term.b
    first, *rest = error.index
    place = [first, *_unravelled(rest[0], tensor.shape[1:])] if rest else [first]
    role = {"a": "factor A", "b": "factor B"}.get(error.operand, "value")
    return InvalidAdapter(
        f"{plan.sources[term.source].name}: {term.key} has a {role} that is NaN or infinite "
        f"at {place}",
        remedy=DIVERGED,
    )


def _unravelled(index: int, shape: tuple[int, ...]) -> list[int]:
    return [int(i) for i in np.unravel_index(index, shape)]


def _stored_index(index: tuple[int, ...], work: Work) -> list[int]:
    """Where an element of the formula's (out, in) is in the tensor as stored."""
    if len(index) != 2 or not work.terms:
        return list(index)
    row, column = index
    if work.slabs[0].transposed:
        return [column, row]
    return [row, *_unravelled(column, work.shape[1:])]


# --- other files ------------------------------------------------------------------------------


def _write_small_files(plan: MergePlan, directory: Path) -> dict[str, str]:
    files = {}
    for name in plan.companions:
        data = plan.base.bytes_of(name)
        write(directory / name, data)
        files[name] = digest.of_bytes(data)
    data = _config_bytes(plan)
    write(directory / "config.json", data)
    files["config.json"] = digest.of_bytes(data)
    return files


def _config_bytes(plan: MergePlan) -> bytes:
    """The base's own bytes where the merge changes nothing that they say."""
    if plan.config == plan.base.config:
        return plan.base.bytes_of("config.json")
    return (json.dumps(plan.config, indent=2) + "\n").encode("ascii")
