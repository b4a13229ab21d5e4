"""A directory of weights: one safetensors file, or an index and its shards."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

from adapterhub.errors import InvalidTensorFile, NotFound
from adapterhub.tensorfile.header import Header, read_header
from adapterhub.tensorfile.json_text import JSONDecodeError, decode_document
from adapterhub.tensorfile.names import shown
from adapterhub.tensorfile.reading import fill, open_regular, refusal
from adapterhub.tensorfile.tensors import FileTensor

MAX_INDEX_BYTES = 100_000_000


@dataclass(frozen=True)
class Checkpoint:
    """Every tensor of `directory`, file by file as the index first names them, then by offset.

    `metadata` holds the safetensors metadata on which all files that have the key agree.
    """

    directory: Path
    files: tuple[Path, ...]
    tensors: Mapping[str, FileTensor]
    metadata: Mapping[str, str]


def open_checkpoint(directory: str | os.PathLike[str], stem: str = "model") -> Checkpoint:
    """Open `{stem}.safetensors`, or `{stem}.safetensors.index.json` and what it names.

    Raises:
        NotFound: no such directory.
        InvalidTensorFile: no weights, or weights in another format; a damaged file; an index
            that does not name exactly the tensors of its shards; an index beside a single file
            that it does not mean.
    """
    directory = Path(directory)
    if not directory.is_dir():
        raise NotFound(f"{directory}: no such directory", remedy="check the path")
    single = directory / f"{stem}.safetensors"
    index = directory / f"{stem}.safetensors.index.json"
    if os.path.lexists(index):
        return _open_sharded(directory, index, single)
    if not os.path.lexists(single):
        raise _no_weights(directory, single)
    header = read_header(single)
    return Checkpoint(directory, (single,), header.tensors, header.metadata)


def _open_sharded(directory: Path, index: Path, single: Path) -> Checkpoint:
    weight_map = _read_index(index)
    names = tuple(dict.fromkeys(weight_map.values()))
    if os.path.lexists(single) and names != (single.name,):
        raise InvalidTensorFile(
            f"{directory}: {single.name} and {index.name} are both there, and the index names "
            f"other files",
            remedy="remove the one that is out of date",
        )
    headers = [_read_shard(index, directory / name) for name in names]
    tensors = _joined(index, headers)
    _check_map(index, weight_map, tensors)
    files = tuple(header.path for header in headers)
    return Checkpoint(directory, files, MappingProxyType(tensors), _common_metadata(headers))


def _read_index(index: Path) -> dict[str, str]:
    with open_regular(index) as fd:
        size = os.fstat(fd).st_size
        if size > MAX_INDEX_BYTES:
            raise refusal(index, f"has {size} bytes, at most {MAX_INDEX_BYTES} are taken", 0)
        raw = bytearray(size)
        fill(fd, memoryview(raw), 0, index)
    try:
        text = raw.decode("utf-8")
        weight_map = decode_document(text).get("weight_map")
    except UnicodeDecodeError as error:
        raise refusal(index, "is not UTF-8", error.start) from None
    except JSONDecodeError as error:
        offset = len(text[: error.pos].encode("utf-8"))
        raise refusal(index, f"is not JSON: {error.msg}", offset) from None
    except ValueError as error:
        raise refusal(index, str(error), 0) from None
    if not isinstance(weight_map, dict) or not weight_map:
        raise refusal(index, "has no weight_map of tensor names to file names", 0)
    for name, file in weight_map.items():
        if not isinstance(file, str) or not _is_plain(file):
            what = f"tensor {shown(name)} is said to be in {shown(str(file))}, which is no plain "
            raise refusal(index, what + "name of a .safetensors file beside the index", 0)
    return weight_map


def _is_plain(file: str) -> bool:
    separators = {"/", "\\", "\0"} & set(file)
    return not separators and not file.startswith(".") and file.endswith(".safetensors")


def _read_shard(index: Path, path: Path) -> Header:
    try:
        return read_header(path)
    except NotFound:
        raise InvalidTensorFile(
            f"{index}: names the file {shown(path.name)}, which is not there",
            remedy="download the missing file",
        ) from None


def _joined(index: Path, headers: Sequence[Header]) -> dict[str, FileTensor]:
    tensors: dict[str, FileTensor] = {}
    for header in headers:
        for name, tensor in header.tensors.items():
            if other := tensors.get(name):
                what = f"tensor {shown(name)} is in both {other.path.name} and {header.path.name}"
                raise refusal(index, what, 0, "get the checkpoint anew: its files do not match")
            tensors[name] = tensor
    return tensors


def _check_map(
    index: Path, weight_map: Mapping[str, str], tensors: Mapping[str, FileTensor]
) -> None:
    remedy = "get the checkpoint anew: its files do not match its index"
    for name, file in weight_map.items():
        found = tensors[name].path.name if name in tensors else "none of the files"
        if found != file:
            what = f"tensor {shown(name)} should be in {shown(file)} and is in {found}"
            raise refusal(index, what, 0, remedy)
    for name, tensor in tensors.items():
        if name not in weight_map:
            what = f"tensor {shown(name)} of {tensor.path.name} is missing from the weight_map"
            raise refusal(index, what, 0, remedy)


def _common_metadata(headers: Sequence[Header]) -> Mapping[str, str]:
    values: dict[str, set[str]] = {}
    for header in headers:
        for key, value in header.metadata.items():
            values.setdefault(key, set()).add(value)
    common = {key: found.pop() for key, found in values.items() if len(found) == 1}
    return MappingProxyType(common)


# --- nothing to open --------------------------------------------------------------------------

_TO_SAFETENSORS = (
    'convert it: python -c "from transformers import AutoModel; '
    "AutoModel.from_pretrained('{0}').save_pretrained('{0}')\""
)


def _no_weights(directory: Path, single: Path) -> InvalidTensorFile:
    """Says what is there instead."""
    files = sorted(entry.name for entry in directory.iterdir())
    stem = single.stem
    pickles = [f for f in files if f.endswith((".bin", ".pt", ".pth", ".ckpt"))]
    shards = [f for f in files if f.startswith(f"{stem}-") and f.endswith(".safetensors")]
    others = [f for f in files if f.endswith((".safetensors", ".gguf", ".h5", ".msgpack"))]
    expected = f"{directory}: no {single.name} and no index of shards"
    if shards:
        remedy = f"download {single.name}.index.json, which says how the shards belong together"
        return InvalidTensorFile(f"{expected}, though there is {shown(shards[0])}", remedy=remedy)
    if pickles:
        remedy = (
            _TO_SAFETENSORS.format(directory)
            if stem == "model"
            else ("save it again with save_pretrained(…), which writes safetensors")
        )
        return InvalidTensorFile(f"{expected}; {shown(pickles[0])} is a pickle", remedy=remedy)
    if others:
        remedy = f"name the directory that holds {single.name}"
        return InvalidTensorFile(f"{expected}, but {shown(others[0])}", remedy=remedy)
    return InvalidTensorFile(expected, remedy="download the weights, or check the directory")
