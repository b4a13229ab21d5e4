"""The one door for pickles: torch's restricted loader, and only with consent."""

from __future__ import annotations

import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from adapterhub.errors import InvalidTensorFile
from adapterhub.tensorfile import DTYPES, ArrayTensor, Tensor

if TYPE_CHECKING:
    import torch

LFS = b"version https://git-lfs.github.com/spec/"


def load(path: Path) -> Mapping[str, Tensor]:
    """The tensors of a `torch.save` file, through `weights_only=True`, on the CPU.

    Raises InvalidTensorFile for anything but a flat dict of tensors.
    """
    _refuse_pointer(path)
    import torch

    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # zip, pickle, Runtime, EOF and Value errors all mean damage here
        raise InvalidTensorFile(
            f"{path} cannot be read as a pickle of tensors: {str(error).splitlines()[0][:200]}",
            remedy="the file is truncated or holds more than tensors; export it again as "
            "safetensors where it came from",
        ) from error
    if not isinstance(content, dict) or not all(isinstance(key, str) for key in content):
        raise InvalidTensorFile(f"{path} does not hold a dict of named tensors")
    wrong = [key for key, value in content.items() if not isinstance(value, torch.Tensor)]
    if wrong:
        raise InvalidTensorFile(
            f"{path} holds values that are no tensors: {', '.join(wrong[:5])}",
            remedy="save the adapter's state dict alone",
        )
    return {key: ArrayTensor(_array(path, key, value)) for key, value in content.items()}


def _refuse_pointer(path: Path) -> None:
    with path.open("rb") as file:
        start = file.read(len(LFS))
    if start == LFS:
        raise InvalidTensorFile(
            f"{path} is a Git-LFS pointer, not the file itself",
            remedy="git lfs pull, or download the file again",
            offset=0,
        )
    if start[:2] == b"PK" and not zipfile.is_zipfile(path):
        raise InvalidTensorFile(
            f"{path} is truncated: a zip archive without its central directory",
            remedy="download it again",
        )


def _array(path: Path, key: str, tensor: torch.Tensor) -> np.ndarray:
    import torch

    if tensor.layout is not torch.strided or tensor.is_quantized:
        raise InvalidTensorFile(f"{path}: {key} is a sparse or quantised tensor")
    plain = tensor.detach().contiguous()
    if plain.dtype == torch.bfloat16:
        return plain.view(torch.int16).numpy().view(DTYPES["BF16"])
    return plain.numpy()
