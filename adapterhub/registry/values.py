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

# The bits of the exponent; all of them set means NaN or infinity. On integers this is many times
# as fast as asking ml_dtypes, whose types numpy has no vector code for.
_EXPONENTS = {"BF16": (np.uint16, 0x7F80), "F16": (np.uint16, 0x7C00)}
_PIECE_BYTES = 1 << 20
Place = tuple[str, str]  # module, role


@dataclass
class Scan:
    """What was seen of one tensor: the first element that is not finite, if all were zero."""

    not_finite: int | None = None
    zero: bool = True


def value_problems(adapter: Adapter) -> list[Problem]:
    """NaN and infinities (fatal), and low-rank pairs that change nothing. In bounded memory."""
    tensors = {(module, role): tensor for module, role, tensor in adapter.tensors()}
    try:
        scans = _scans(tensors)
    except AdapterHubError as error:
        return [Problem(error.code, error.message, error.remedy, fatal=True)]
    found = []
    for (module, role), tensor in tensors.items():
        if (at := scans[module, role].not_finite) is not None:
            index = [int(i) for i in np.unravel_index(at, tensor.shape)]
            text = f"{module}.{role} holds NaN or infinity, first at {index}"
            remedy = "it diverged in training: take an earlier checkpoint"
            found.append(Problem("not-finite", text, remedy, fatal=True))
    return found + _zero_problems(scans)


def _zero_problems(scans: Mapping[Place, Scan]) -> list[Problem]:
    # base_layer.lora_B, too
    pairs = [place for place in scans if place[1].endswith(("lora_B", "lora_embedding_B"))]
    zeros = [module for module, role in pairs if scans[module, role].zero]
    if not zeros:
        return []
    some = "all" if len(zeros) == len(pairs) else f"{len(zeros)} of {len(pairs)}"
    text = f"{some} lora_B are zero: nothing was learned there (first: {zeros[0]})"
    return [Problem("zero-b", text, "check that training reached these modules")]


def _scans(tensors: Mapping[Place, Tensor]) -> dict[Place, Scan]:
    """Of every tensor; each file is opened once, since adapters have hundreds of small ones."""
    found: dict[Place, Scan] = {}
    files: dict[Path, list[tuple[Place, FileTensor]]] = {}
    for place, tensor in tensors.items():
        if tensor.dtype not in DTYPES:
            tensor.read()  # raises what is wrong with types that numpy lacks
        if isinstance(tensor, FileTensor):
            files.setdefault(tensor.path, []).append((place, tensor))
        else:
            found[place] = _scan(tensor.pieces(), tensor.dtype)
    piece = buffer(_PIECE_BYTES).data
    for path, inside in files.items():
        with open_regular(path) as fd:
            for place, tensor in sorted(inside, key=lambda item: item[1].offset):
                found[place] = _scan(_pieces(fd, tensor, piece), tensor.dtype)
    return found


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
        bad, zero = _bad_and_zero(piece, dtype)
        seen.zero = seen.zero and zero
        if bad.any():
            seen.not_finite = done + int(np.argmax(bad))
            return seen
        done += bad.size
    return seen


def _bad_and_zero(piece: memoryview, dtype: str) -> tuple[np.ndarray, bool]:
    """Which elements are not finite, and whether all are zero (−0 is)."""
    if dtype in _EXPONENTS:
        kind, exponent = _EXPONENTS[dtype]
        bits = np.frombuffer(piece, kind)
        return (bits & exponent) == exponent, not (bits & 0x7FFF).any()
    values = np.frombuffer(piece, DTYPES[dtype])
    return ~np.isfinite(values), not values.any()
