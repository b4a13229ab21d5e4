"""What the readers of plain state dicts share: one file without a config."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from adapterhub.adapter import Problem, SafeForm, SourceFile
from adapterhub.formats import pickles
from adapterhub.formats.contents import Content
from adapterhub.formats.sight import Sight, may_be_weights
from adapterhub.tensorfile import Tensor


def tensors(content: Content, allow_pickle: bool) -> Mapping[str, Tensor]:
    """Raises PickleRefused without consent, InvalidTensorFile for damage."""
    return content.tensors if content.tensors else pickles.with_consent(content.path, allow_pickle)


def source(content: Content, tensors: Mapping[str, Tensor], fallback: str) -> SourceFile:
    """The file, and what a pickle is stored as.

    A name that only models have, which somebody gave it all the same, becomes `fallback`: in a
    directory of its own it would not be taken for an adapter.
    """
    if content.kind != "pickle":
        name = content.name if may_be_weights(content.name) else fallback
        return SourceFile(name, content.path, "weights")
    name = f"{content.path.stem}.safetensors"
    safe = SafeForm(name if may_be_weights(name) else fallback, tensors) if tensors else None
    return SourceFile(content.name, content.path, "weights", safe)


def several(sight: Sight, found: Sequence[Content], what: str) -> Problem:
    """That a directory holds several, where one was to be read."""
    text = f"{sight.directory} holds {len(found)} {what}, each an adapter by itself"
    remedy = f"name one of them: {found[0].path}; or add all: --recursive"
    return Problem("several", text, remedy, fatal=True)
