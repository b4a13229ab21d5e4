"""Runs a plan: tensor by tensor from the base to `<out>.partial`, fsync, rename.

It decides nothing and never holds more than one tensor and its factors. A killed merge leaves a
directory whose name ends in `.partial` and which has no config.json until all weights are whole,
so that nothing loads it by mistake; the next merge to the same place starts it anew.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np

from adapterhub import digest, kernels
from adapterhub.errors import (
    AdapterHubError,
    IntegrityError,
    InvalidAdapter,
    InvalidBase,
    NotMergeable,
    OutputError,
)
from adapterhub.merge.plan import MergePlan, Term, Work
from adapterhub.tensorfile import DTYPES, ArrayTensor, ShardLayout, Tensor, index_json

Progress = Callable[[int], None]
MARKER = ".adapterhub-partial"
SPARE_BYTES = 1 << 20  # config, index, report


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
    with _partial(out, plan.write_bytes) as directory, _named_output_errors(out):
        digests = _write_shards(plan, directory, base_digests, progress)
        files = _write_small_files(plan, directory)
        written = Written(digests, files)
        _write(directory / "adapterhub.json", describe(written))
        (directory / MARKER).unlink()
        _sync_directory(directory)
        directory.replace(out)
        _sync_directory(out.parent)
    return written


def repeat(
    plan: MergePlan, *, base_digests: Mapping[str, bytes], progress: Progress | None = None
) -> Mapping[str, bytes]:
    """D of every output tensor, computed without writing anything."""
    digests = {}
    for work in plan.works.values():
        digests[work.name] = _digest_of(work, plan, base_digests)
        if progress:
            progress(work.value.nbytes)
    return digests


def _digest_of(work: Work, plan: MergePlan, base_digests: Mapping[str, bytes]) -> bytes:
    if work.is_copy and work.stored is not None:
        return base_digests[work.stored]
    hasher = digest.TensorHasher()
    for piece in compute(work, plan).pieces():
        hasher.update(piece)
    return hasher.digest()


# --- weights ----------------------------------------------------------------------------------


def _write_shards(
    plan: MergePlan,
    directory: Path,
    base_digests: Mapping[str, bytes],
    progress: Progress | None,
) -> dict[str, bytes]:
    digests: dict[str, bytes] = {}
    for shard in plan.shards:
        with (directory / shard.filename).open("xb") as file:
            file.write(shard.header)
            for spec in shard.specs:
                work = plan.works[spec.name]
                digests[work.name] = _write_tensor(work, plan, file, base_digests)
                if progress:
                    progress(spec.nbytes)
            _sync(file)
        _check_size(directory / shard.filename, shard)
    if len(plan.shards) > 1:
        _write(directory / "model.safetensors.index.json", index_json(plan.shards))
    return digests


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
    """The output tensor of one piece of work: the base's own, or its merged values."""
    if not work.terms and work.dtype == work.value.dtype:
        return work.value
    try:
        return ArrayTensor(_merged(work))
    except kernels.NonFinite as error:
        raise _explained(error, work, plan) from error


def _merged(work: Work) -> np.ndarray:
    dtype = DTYPES[work.dtype]
    value = work.value.read()
    if value.dtype != dtype or not work.terms:
        value = value.astype(np.float32)  # exact, or the one rounding of fp64
    if work.terms:
        value = _apply(work, value)
    return value if value.dtype == dtype else _rounded(value, dtype)


def _rounded(value: np.ndarray, dtype: np.dtype) -> np.ndarray:
    return kernels.round_to(value.reshape(-1), dtype).reshape(value.shape)


def _apply(work: Work, value: np.ndarray) -> np.ndarray:
    """`value` plus the terms, in its own dtype and shape."""
    if work.terms[0].a is None:
        return kernels.add_scaled(value, [(t.scale, _fp32(t.b)) for t in work.terms])
    matrix = value.T if work.transposed else value.reshape(value.shape[0], -1)
    merged = kernels.merge_low_rank(matrix, [_factor(term) for term in work.terms])
    return np.ascontiguousarray(merged.T) if work.transposed else merged.reshape(value.shape)


def _factor(term: Term) -> kernels.Factor:
    if term.a is None:
        raise NotMergeable(f"{term.key}: a bias cannot be added to a matrix")
    a, b = _fp32(term.a), _fp32(term.b)
    return kernels.Factor(
        a=a.reshape(a.shape[0], -1), b=b.reshape(b.shape[0], -1), scale=term.scale
    )


def _fp32(tensor: Tensor) -> np.ndarray:
    return tensor.read().astype(np.float32, copy=False)


def _explained(error: kernels.NonFinite, work: Work, plan: MergePlan) -> AdapterHubError:
    """The kernel's terse fact, with the names that it does not know."""
    where = list(error.index)
    if error.operand == "result":
        return NotMergeable(
            f"{work.name} at {where}: the result does not fit {work.dtype}",
            remedy="--dtype float32, or a smaller weight for the adapter",
        )
    if error.factor is None:
        return InvalidBase(
            f"{work.stored or work.name} at {where} of the base is NaN or infinite",
            remedy="get the base anew; a merge would spread the damage",
        )
    term = work.terms[error.factor]
    source = plan.sources[term.source].name
    role = {"a": "A", "b": "B"}.get(error.operand, error.operand)
    return InvalidAdapter(
        f"{source}: {term.key} has a value in its factor {role} at {where} that is NaN or infinite",
        remedy="this adapter diverged in training; take an earlier checkpoint",
    )


# --- other files ------------------------------------------------------------------------------


def _write_small_files(plan: MergePlan, directory: Path) -> dict[str, str]:
    files = {}
    for name, path in plan.companions.items():
        data = path.read_bytes()
        _write(directory / name, data)
        files[name] = digest.of_bytes(data)
    data = _config_bytes(plan)
    _write(directory / "config.json", data)
    files["config.json"] = digest.of_bytes(data)
    return dict(sorted(files.items()))


def _config_bytes(plan: MergePlan) -> bytes:
    """The base's own bytes where the merge changes nothing that they say."""
    if plan.config == plan.base.config:
        return (plan.base.path / "config.json").read_bytes()
    return (json.dumps(plan.config, indent=2, ensure_ascii=False) + "\n").encode("utf-8")


def _write(path: Path, data: bytes) -> None:
    with path.open("xb") as file:
        file.write(data)
        _sync(file)


def _sync(file: BinaryIO) -> None:
    file.flush()
    os.fsync(file.fileno())


def _sync_directory(directory: Path) -> None:
    fd = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


# --- the partial directory --------------------------------------------------------------------


@contextmanager
def _partial(out: Path, nbytes: int) -> Iterator[Path]:
    """`<out>.partial`, ours alone while it lasts; gone if anything fails."""
    check_output(out)
    partial = out.with_name(f"{out.name}.partial")
    with _named_output_errors(out):
        out.parent.mkdir(parents=True, exist_ok=True)
        _check_space(out, nbytes)
        with _claimed(partial):
            try:
                yield partial
            except BaseException:
                shutil.rmtree(partial, ignore_errors=True)
                raise


def check_output(out: Path) -> None:
    """Raises OutputError if something is at `out` already."""
    if out.is_dir() and not out.is_symlink():
        if any(out.iterdir()):
            raise OutputError(
                f"{out} is not empty", remedy="choose a new directory, or empty this one"
            )
    elif os.path.lexists(out):
        raise OutputError(f"{out} exists and is not a directory", remedy="choose another --out")


def _check_space(out: Path, nbytes: int) -> None:
    free = shutil.disk_usage(out.parent).free
    if free < nbytes + SPARE_BYTES:
        raise OutputError(
            f"{out.parent} has {free:,} bytes free, the merge writes {nbytes:,}",
            remedy="free some space, or choose another --out",
        )


@contextmanager
def _claimed(partial: Path) -> Iterator[None]:
    """A fresh directory with a locked marker; what a killed merge left there is removed."""
    if partial.exists() and not (partial / MARKER).is_file() and any(partial.iterdir()):
        raise OutputError(
            f"{partial} exists and is not the remainder of a merge",
            remedy="move it away, or choose another --out",
        )
    partial.mkdir(exist_ok=True)
    with (partial / MARKER).open("ab") as marker:
        try:
            fcntl.flock(marker, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise OutputError(
                f"another merge is writing to {partial}", remedy="wait for it to end"
            ) from None
        for entry in partial.iterdir():
            if entry.name != MARKER:
                shutil.rmtree(entry) if entry.is_dir() else entry.unlink()
        yield


@contextmanager
def _named_output_errors(out: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        remedies = {
            errno.ENOSPC: "the disk is full: free some space, or choose another --out",
            errno.EDQUOT: "the quota is used up: free some space, or choose another --out",
            errno.EACCES: "choose an --out that you may write to",
            errno.EROFS: "choose an --out that you may write to",
        }
        raise OutputError(
            f"writing {out} failed: {error.strerror}",
            remedy=remedies.get(error.errno or 0, "nothing was left behind; try again"),
        ) from error
