"""Writing safetensors: first the layout of every file as plain data, then the bytes.

The layout is a pure function of the tensors' names, dtypes and shapes, so that who writes by
other means (in place, in parallel, on several machines) puts the same bytes at the same places.
"""

from __future__ import annotations

import json
import math
import os
import secrets
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import BinaryIO

from adapterhub.errors import IntegrityError, InvalidOption, OutputError
from adapterhub.tensorfile.dtypes import alignment, storage_bytes
from adapterhub.tensorfile.header import MAX_HEADER_BYTES, METADATA
from adapterhub.tensorfile.json_text import is_unicode
from adapterhub.tensorfile.names import name_problem, shown
from adapterhub.tensorfile.tensors import Tensor

# transformers refuses to load a file whose metadata does not name the framework.
PT: Mapping[str, str] = MappingProxyType({"format": "pt"})


@dataclass(frozen=True, slots=True)
class Spec:
    """A tensor to be written.

    Raises:
        InvalidOption: a name, dtype or shape that our own reader would refuse.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    nbytes: int = field(init=False)

    def __post_init__(self) -> None:
        problem = name_problem(self.name)
        try:
            object.__setattr__(self, "nbytes", storage_bytes(self.dtype, self.shape))
        except ValueError as error:
            problem = problem or str(error)
        if problem:
            raise InvalidOption(
                f"tensor {shown(self.name)} cannot be written: {problem}",
                remedy="correct the tensor's name, dtype or shape",
            )


@dataclass(frozen=True)
class ShardLayout:
    """One file: `header` (length, JSON, padding), then each of `specs` at its absolute offset."""

    filename: str
    header: bytes
    specs: tuple[Spec, ...]
    offsets: Mapping[str, int]
    nbytes: int


def plan_shards(
    specs: Sequence[Spec],
    *,
    max_shard_bytes: int | None,
    stem: str = "model",
    metadata: Mapping[str, str] = PT,
) -> tuple[ShardLayout, ...]:
    """Lay out `specs` in `{stem}.safetensors`, or `{stem}-00001-of-0000N.safetensors` …

    Shards fill in the order given, and close as transformers closes them: when the next tensor
    would exceed `max_shard_bytes` (of tensor data). A larger tensor has a shard of its own, which
    stands before the one being filled. No tensors: one file without any.

    Within a file the order stays too, unless it would put a tensor at an offset that its element
    size does not divide: then larger elements come first.

    Raises:
        InvalidOption: a name twice; a limit below 1 byte; metadata that is not text; a header
            beyond 100 MB.
    """
    if max_shard_bytes is not None and max_shard_bytes < 1:
        raise InvalidOption(
            f"a shard of at most {max_shard_bytes} bytes holds nothing",
            remedy="give a size of at least 1 byte",
        )
    _check_unique(specs)
    groups = [list(specs)] if max_shard_bytes is None else _split(specs, max_shard_bytes)
    names = [f"{stem}.safetensors"]
    if len(groups) > 1:
        count = len(groups)
        names = [f"{stem}-{i:05d}-of-{count:05d}.safetensors" for i in range(1, count + 1)]
    return tuple(lay_out(name, group, metadata) for name, group in zip(names, groups, strict=True))


def index_json(layouts: Sequence[ShardLayout]) -> bytes:
    """`model.safetensors.index.json` as transformers 5 writes it.

    `total_parameters` counts the elements of every tensor in the files, buffers included.
    """
    specs = [spec for layout in layouts for spec in layout.specs]
    index = {
        "metadata": {
            "total_parameters": sum(math.prod(spec.shape) for spec in specs),
            "total_size": sum(spec.nbytes for spec in specs),
        },
        "weight_map": {spec.name: layout.filename for layout in layouts for spec in layout.specs},
    }
    return (json.dumps(index, indent=2, sort_keys=True) + "\n").encode("ascii")


def write_file(
    path: str | os.PathLike[str], tensors: Mapping[str, Tensor], metadata: Mapping[str, str] = PT
) -> None:
    """Write one safetensors file, piece by piece; it replaces an older one in a single step.

    The bytes go to a temporary file in the same directory, which is synced to the disk and then
    renamed; whatever fails before that leaves `path` as it was, and no temporary file.

    Raises:
        InvalidOption: see `plan_shards`.
        OutputError: the disk is full, no permission, no such directory.
        IntegrityError: a tensor that gave more or fewer bytes than it said.
    """
    specs = [Spec(name, tensor.dtype, tensor.shape) for name, tensor in tensors.items()]
    (layout,) = plan_shards(specs, max_shard_bytes=None, metadata=metadata)
    with _replacing(Path(path)) as file:
        file.write(layout.header)
        for spec in layout.specs:
            written = sum(file.write(piece) for piece in tensors[spec.name].pieces())
            if written != spec.nbytes:
                raise IntegrityError(
                    f"tensor {shown(spec.name)} gave {written} bytes, expected {spec.nbytes}",
                    remedy="see what changes it while it is being read",
                )


# --- layout -----------------------------------------------------------------------------------


def _check_unique(specs: Sequence[Spec]) -> None:
    seen: set[str] = set()
    for spec in specs:
        if spec.name in seen:
            raise InvalidOption(
                f"tensor {shown(spec.name)} is to be written twice",
                remedy="give each tensor a name of its own",
            )
        seen.add(spec.name)


def _split(specs: Sequence[Spec], limit: int) -> list[list[Spec]]:
    groups: list[list[Spec]] = []
    filling: list[Spec] = []
    filled = 0
    for spec in specs:
        if spec.nbytes > limit:
            groups.append([spec])
            continue
        if filled + spec.nbytes > limit:
            groups.append(filling)
            filling, filled = [], 0
        filling.append(spec)
        filled += spec.nbytes
    return [*groups, filling] if filling or not groups else groups


def lay_out(filename: str, specs: Sequence[Spec], metadata: Mapping[str, str] = PT) -> ShardLayout:
    """Lay out one file; see `plan_shards`."""
    ordered = _aligned(specs)
    ends: list[int] = []
    entries: dict[str, object] = {METADATA: _checked(metadata)} if metadata else {}
    end = 0
    for spec in ordered:
        begin, end = end, end + spec.nbytes
        ends.append(end)
        shape = list(spec.shape)
        entries[spec.name] = {"dtype": spec.dtype, "shape": shape, "data_offsets": [begin, end]}
    header = _header_bytes(entries)
    offsets = {
        spec.name: len(header) + stop - spec.nbytes
        for spec, stop in zip(ordered, ends, strict=True)
    }
    return ShardLayout(filename, header, ordered, MappingProxyType(offsets), len(header) + end)


def _aligned(specs: Sequence[Spec]) -> tuple[Spec, ...]:
    at = 0
    for spec in specs:
        if at % alignment(spec.dtype):
            return tuple(sorted(specs, key=lambda spec: -alignment(spec.dtype)))
        at += spec.nbytes
    return tuple(specs)


def _checked(metadata: Mapping[str, str]) -> dict[str, str]:
    """Sorted, so that equal metadata gives equal bytes."""
    for key, value in metadata.items():
        if not (isinstance(key, str) and isinstance(value, str)):
            raise InvalidOption(f"metadata {key!a} is not text", remedy="convert it to a string")
        if not (is_unicode(key) and is_unicode(value)):
            raise InvalidOption(
                f"metadata {key!a} holds a lone surrogate", remedy="remove it from the text"
            )
    return dict(sorted(metadata.items()))


def _header_bytes(entries: Mapping[str, object]) -> bytes:
    text = json.dumps(entries, ensure_ascii=False, separators=(",", ":")).encode("utf-8")
    text += b" " * (-len(text) % 8)
    if len(text) > MAX_HEADER_BYTES:
        raise InvalidOption(
            f"the header would have {len(text)} bytes, at most {MAX_HEADER_BYTES} can be read",
            remedy="write more shards, or less metadata",
        )
    return len(text).to_bytes(8, "little") + text


# --- bytes ------------------------------------------------------------------------------------


@contextmanager
def _replacing(path: Path) -> Iterator[BinaryIO]:
    """A file to write to, which becomes `path` when all went well."""
    temporary = path.with_name(f".{path.name[:200]}.{secrets.token_hex(6)}.tmp")
    try:
        with temporary.open("xb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
        _sync_directory(path.parent)
    except OSError as error:
        raise OutputError(
            f"{path}: cannot be written: {error.strerror}", remedy=_remedy(error)
        ) from error
    finally:
        with suppress(OSError):
            temporary.unlink()


def _sync_directory(directory: Path) -> None:
    fd = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def _remedy(error: OSError) -> str:
    if isinstance(error, PermissionError):
        return "choose a directory that you may write to"
    if isinstance(error, FileNotFoundError):
        return "create the directory first"
    return "free some space or choose another disk"
