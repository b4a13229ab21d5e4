"""What one file of weights shows without reading values: names, shapes, metadata, or its damage."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from adapterhub.adapter import Problem
from adapterhub.errors import AdapterHubError
from adapterhub.formats import arrays, gguf_header, pickle_names
from adapterhub.formats.pickle_names import Shape
from adapterhub.tensorfile import Tensor, read_header

AGAIN = "get the file anew: download or export it again"
LFS = b"version https://git-lfs.github.com/spec/"
_SUFFIX_OF = {".safetensors": "safetensors", ".gguf": "gguf", ".npz": "npz", ".npy": "npy"}


@dataclass(frozen=True)
class Content:
    """`kind`: safetensors, pickle, gguf, npz, npy; "" where the file is none of them.

    `shapes` has a name for every tensor, and None where the shape does not show. `tensors` are
    there where values can be read without consent. `metadata` is that of a safetensors or GGUF
    file. `others` are names of a pickle's values that are no tensors. `problem` says what is wrong.
    """

    path: Path
    kind: str = ""
    shapes: Mapping[str, Shape | None] = field(default_factory=dict)
    tensors: Mapping[str, Tensor] = field(default_factory=dict)
    metadata: Mapping[str, str | int | float | bool | None] = field(default_factory=dict)
    others: tuple[str, ...] = ()
    problem: Problem | None = None

    @property
    def name(self) -> str:
        return self.path.name


def look(path: Path) -> Content:
    """Never raises: damage is the content's `problem`."""
    kind = ""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError as error:
        return _damaged(path, "", f"cannot be opened: {error.strerror}", "check its permissions")
    try:
        start = os.pread(fd, 64, 0)
        kind = _kind(path, start)
        if start.startswith(LFS):
            text = "is a Git-LFS pointer, not the file itself"
            return _damaged(path, kind, text, "git lfs pull, or download the file again")
        return _LOOKS[kind](path, fd) if kind else Content(path)
    except AdapterHubError as error:  # of read_header, which names the file itself
        problem = Problem(error.code, error.message, error.remedy, fatal=True)
        return Content(path, kind, problem=problem)
    except ValueError as error:
        return _damaged(path, kind, str(error), AGAIN)
    except OSError as error:
        return _damaged(path, kind, f"cannot be read: {error.strerror}", "check the disk")
    finally:
        os.close(fd)


def _damaged(path: Path, kind: str, what: str, remedy: str) -> Content:
    problem = Problem("invalid-tensor-file", f"{path}: {what}", remedy, fatal=True)
    return Content(path, kind, problem=problem)


def _kind(path: Path, start: bytes) -> str:
    """By the first bytes; by the suffix for safetensors, which has none of its own."""
    by_suffix = _SUFFIX_OF.get(path.suffix, "")
    if start.startswith(gguf_header.MAGIC):
        return "gguf"
    if start.startswith(arrays.MAGIC):
        return "npy"
    if start.startswith(b"PK\x03\x04"):
        return "npz" if by_suffix == "npz" else "pickle"
    if start[:1] == b"\x80" and start[1:2] in (b"\x02", b"\x03", b"\x04", b"\x05"):
        return "pickle"
    if by_suffix == "" and start[8:9] == b"{":
        return "safetensors"  # under the name of a pickle; a length of 8 bytes, then JSON
    return by_suffix


def _safetensors(path: Path, fd: int) -> Content:
    header = read_header(path)
    shapes = {name: tensor.shape for name, tensor in header.tensors.items()}
    return Content(path, "safetensors", shapes, header.tensors, header.metadata)


def _pickle(path: Path, fd: int) -> Content:
    found = pickle_names.names(fd)
    return Content(path, "pickle", found.shapes, others=found.extras)


def _gguf(path: Path, fd: int) -> Content:
    found = gguf_header.read(fd)
    return Content(path, "gguf", found.shapes, metadata=found.pairs)


def _npy(path: Path, fd: int) -> Content:
    head = arrays.npy_header(fd)
    return Content(path, "npy", {path.stem: head.shape}, {path.stem: arrays.tensor(path, head)})


def _npz(path: Path, fd: int) -> Content:
    shapes = {name: head.shape for name, head in arrays.npz_headers(fd).items()}
    return Content(path, "npz", shapes)


_LOOKS: Mapping[str, Callable[[Path, int], Content]] = {
    "safetensors": _safetensors,
    "pickle": _pickle,
    "gguf": _gguf,
    "npy": _npy,
    "npz": _npz,
}
