"""What the values of an adapter tell: NaN, infinities, and factors that change nothing."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from adapterhub.adapter import Adapter, Problem
from adapterhub.errors import AdapterHubError
from adapterhub.tensorfile import DTYPES, FileTensor, Tensor
from adapterhub.tensorfile.reading import buffer, fill, open_regular

# As integers without their sign the values of a type are in order: zero is 0, and from infinity on
# nothing is finite. One maximum tells both, many times as fast as asking ml_dtypes, for whose types
# numpy has no vector code.
_ORDERED = {
    "BF16": (np.uint16, 0x7FFF, 0x7F80),
    "F16": (np.uint16, 0x7FFF, 0x7C00),
    "F32": (np.uint32, 0x7FFF_FFFF, 0x7F80_0000),
}
_PIECE_BYTES = 256 * 1024
Place = tuple[str, str]  # module, role


@dataclass
class Scan:
    """What was seen of one tensor: the first element that is not finite, if all were zero."""

    not_finite: int | None = None
    zero: bool = True


def value_problems(adapter: Adapter) -> list[Problem]:
    """NaN and infinities (fatal), and low-rank pairs that change nothing. In bounded memory."""
    tensors = {(module, role): tensor for module, role, tensor in adapter.tensors()}
    scans: dict[Place, Scan] = {}
    damage = []
    try:
        for place, scan in _scans(tensors):
            scans[place] = scan
    except AdapterHubError as error:
        damage = [Problem(error.code, error.message, error.remedy, fatal=True)]
    found = []
    for module, role in (place for place in tensors if place in scans):
        if (at := scans[module, role].not_finite) is not None:
            index = [int(i) for i in np.unravel_index(at, tensors[module, role].shape)]
            text = f"{module}.{role} holds NaN or infinity, first at {index}"
            remedy = "it diverged in training: take an earlier checkpoint"
            found.append(Problem("not-finite", text, remedy, fatal=True))
    return found + (damage or _zero_problems(scans))


def _zero_problems(scans: Mapping[Place, Scan]) -> list[Problem]:
    # base_layer.lora_B, too
    pairs = [place for place in scans if place[1].endswith(("lora_B", "lora_embedding_B"))]
    zeros = [module for module, role in pairs if scans[module, role].zero]
    if not zeros:
        return []
    some = "all" if len(zeros) == len(pairs) else f"{len(zeros)} of {len(pairs)}"
    text = f"{some} lora_B are zero: nothing was learned there (first: {zeros[0]})"
    return [Problem("zero-b", text, "check that training reached these modules")]


def _scans(tensors: Mapping[Place, Tensor]) -> Iterator[tuple[Place, Scan]]:
    """Of every tensor; each file is opened once, since adapters have hundreds of small ones."""
    files: dict[Path, list[tuple[Place, FileTensor]]] = {}
    for tensor in tensors.values():
        if tensor.dtype not in DTYPES:
            tensor.read()  # raises what is wrong with types that numpy lacks
    for place, tensor in tensors.items():
        if isinstance(tensor, FileTensor):
            files.setdefault(tensor.path, []).append((place, tensor))
        else:
            yield place, _scan(tensor.pieces(), tensor.dtype)
    piece = buffer(_PIECE_BYTES).data
    for path, inside in files.items():
        with open_regular(path) as fd:
            for place, tensor in sorted(inside, key=lambda item: item[1].offset):
                yield place, _scan(_pieces(fd, tensor, piece), tensor.dtype)


def _pieces(fd: int, tensor: FileTensor, piece: memoryview) -> Iterator[memoryview]:
    """The bytes of `tensor`, each part in the same memory as the one before."""
    for start in range(0, tensor.nbytes, len(piece)):
        part = piece[: min(len(piece), tensor.nbytes - start)]
        fill(fd, part, tensor.offset + start, tensor.path)
        yield part


def _scan(pieces: Iterable[memoryview], dtype: str) -> Scan:
    seen = Scan()
    done = 0
    for piece in pieces:
        values = np.frombuffer(piece, DTYPES[dtype])
        finite, zero = _judged(values, dtype)
        seen.zero = seen.zero and zero
        if not finite:
            seen.not_finite = done + int(np.argmin(np.isfinite(values)))
            return seen
        done += values.size
    return seen


def _judged(values: np.ndarray, dtype: str) -> tuple[bool, bool]:
    """Whether all are finite, and whether all are zero (−0 is)."""
    if dtype not in _ORDERED:
        return bool(np.isfinite(values).all()), not values.any()
    kind, magnitude, infinity = _ORDERED[dtype]
    largest = (values.view(kind) & kind(magnitude)).max(initial=0)
    return bool(largest < infinity), bool(largest == 0)
