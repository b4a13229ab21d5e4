"""The one door for pickles: torch's restricted loader, and only with consent."""

from __future__ import annotations

import re
import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from adapterhub.errors import AdapterHubError, InvalidTensorFile, PickleRefused
from adapterhub.formats import pickle_calls
from adapterhub.tensorfile import DTYPES, ArrayTensor, Tensor, name_problem, shown

if TYPE_CHECKING:
    import torch

LFS = b"version https://git-lfs.github.com/spec/"
_AGAIN = "git lfs pull, or download the file again"
_EXPORT = "export it as safetensors where it came from"
_GLOBAL = re.compile(r"GLOBAL:? ([\w.]+)")

# What numpy has no type for, by the name in torch.
_VIEWED = {
    "bfloat16": ("int16", "BF16"),
    "float8_e4m3fn": ("uint8", "F8_E4M3"),
    "float8_e5m2": ("uint8", "F8_E5M2"),
    "float8_e4m3fnuz": ("uint8", "F8_E4M3FNUZ"),
    "float8_e5m2fnuz": ("uint8", "F8_E5M2FNUZ"),
    "float8_e8m0fnu": ("uint8", "F8_E8M0"),
}


def load(path: Path) -> Mapping[str, Tensor]:
    """The tensors of a `torch.save` file, through `weights_only=True`, on the CPU.

    Raises InvalidTensorFile for anything but a flat dict of tensors.
    """
    try:
        check_whole(path)
        pickle_calls.check(path)
        content = _restricted_load(path)
    except AdapterHubError:
        raise
    except Exception as error:  # zip, pickle, Runtime, EOF and Value errors all mean damage here
        raise InvalidTensorFile(
            f"{path} cannot be read as a pickle of tensors: {_reason(error)}",
            remedy=f"the file is damaged or holds more than tensors: {_EXPORT}",
        ) from error
    tensors = _named(path, content)
    _check_held(path, tensors)
    return {name: _tensor(path, name, value) for name, value in tensors.items()}


def check_whole(path: Path) -> None:
    """Raises InvalidTensorFile for what shows to be no file of torch.save, or half of one."""
    with path.open("rb") as file:
        start = file.read(len(LFS))
    if start == LFS:
        raise InvalidTensorFile(
            f"{path} is a Git-LFS pointer, not the file itself", remedy=_AGAIN, offset=0
        )
    if not start:
        raise InvalidTensorFile(f"{path} is empty", remedy=_AGAIN, offset=0)
    if start[:2] == b"PK":
        _check_archive(path)


def _check_archive(path: Path) -> None:
    if not zipfile.is_zipfile(path):
        raise InvalidTensorFile(
            f"{path} is truncated: a zip archive without its central directory", remedy=_AGAIN
        )
    with zipfile.ZipFile(path) as archive:
        packed = [m for m in archive.infolist() if m.compress_type != zipfile.ZIP_STORED]
    if packed:  # torch never compresses; a small file could unpack to more than memory holds
        raise InvalidTensorFile(
            f"{path} is a compressed archive, which torch.save does not write", remedy=_EXPORT
        )


def _restricted_load(path: Path) -> Any:
    import torch

    with warnings.catch_warnings():
        # torch warns of pickle protocols; what it cannot read still raises.
        warnings.simplefilter("ignore", UserWarning)
        return torch.load(path, map_location="cpu", weights_only=True)


def _reason(error: Exception) -> str:
    """What is wrong, without torch's advice to load the file unsafely."""
    text = str(error)
    if found := _GLOBAL.search(text):
        return f"it asks for {found.group(1)}, which is no tensor"
    if "weights_only" in text:
        return "it holds more than tensors"
    return text.splitlines()[0][:200] if text.strip() else type(error).__name__


def _named(path: Path, content: Any) -> dict[str, torch.Tensor]:
    import torch

    if not isinstance(content, dict) or not all(isinstance(key, str) for key in content):
        raise InvalidTensorFile(f"{path} does not hold a dict of named tensors", remedy=_EXPORT)
    for key in content:
        if problem := name_problem(key):
            raise InvalidTensorFile(
                f"{path}: the name {shown(key)} of a tensor {problem}", remedy=_EXPORT
            )
    wrong = [shown(key) for key, value in content.items() if not isinstance(value, torch.Tensor)]
    if wrong:
        raise InvalidTensorFile(
            f"{path} holds values that are no tensors: {', '.join(wrong[:5])}",
            remedy="save the adapter's state dict alone",
        )
    return content


def _check_held(path: Path, tensors: Mapping[str, torch.Tensor]) -> None:
    """A file of the old format may claim storages that it does not hold; they are not zeros."""
    stored = [t.untyped_storage() for t in tensors.values() if _is_plain(t)]
    held = {storage.data_ptr(): storage.nbytes() for storage in stored}
    if sum(held.values()) > path.stat().st_size:
        raise InvalidTensorFile(
            f"{path} claims {sum(held.values())} bytes of values, more than it has", remedy=_EXPORT
        )


def _is_plain(tensor: torch.Tensor) -> bool:
    import torch

    return tensor.layout is torch.strided and not tensor.is_quantized and not tensor.is_meta


def _tensor(path: Path, name: str, tensor: torch.Tensor) -> Tensor:
    import torch

    def refused(what: str) -> InvalidTensorFile:
        return InvalidTensorFile(f"{path}: {shown(name)} {what}", remedy=_EXPORT)

    if not _is_plain(tensor):
        raise refused("is sparse, quantised or without values")
    # A view with stride 0 claims any shape over a few bytes.
    if tensor.numel() * tensor.element_size() > tensor.untyped_storage().nbytes():
        raise refused(f"claims the shape {list(tensor.shape)}, more than its bytes hold")
    plain = tensor.detach().resolve_conj().resolve_neg().contiguous()
    viewed, dtype = _VIEWED.get(str(plain.dtype).removeprefix("torch."), ("", ""))
    try:
        if viewed:
            return ArrayTensor(plain.view(getattr(torch, viewed)).numpy().view(DTYPES[dtype]))
        return ArrayTensor(plain.numpy())
    except (TypeError, AdapterHubError):
        raise refused(f"has the dtype {plain.dtype}, which safetensors lacks") from None


def with_consent(path: Path, allow_pickle: bool) -> Mapping[str, Tensor]:
    """As `load`. Raises PickleRefused without consent."""
    if not allow_pickle:
        check_whole(path)
        raise PickleRefused(
            f"{path.name} is a pickle, which can run code when it is read",
            remedy="--allow-pickle reads its tensors and nothing else",
        )
    return load(path)
