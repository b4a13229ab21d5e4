"""The tensors of a file as the store keeps it: safetensors, or a prompt's .npy."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from adapterhub.errors import InvalidTensorFile
from adapterhub.formats.contents import look
from adapterhub.formats.t5x import ROLE
from adapterhub.tensorfile import Tensor, read_header


def tensors(name: str, path: Path) -> Mapping[str, Tensor]:
    """Those of a file called `name` that lies at `path`, by the names that it gives them.

    A .npy file gives none; its array goes by the role that a prompt has. Raises InvalidTensorFile.
    """
    if not name.endswith(".npy"):
        return read_header(path).tensors
    content = look(path)
    if content.problem is not None or content.kind != "npy":
        what = content.problem.message if content.problem else f"{path}: is no .npy file"
        raise InvalidTensorFile(what)
    return {ROLE: next(iter(content.tensors.values()))}
