"""What the readers of plain state dicts share: one file without a config."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from adapterhub.adapter import Adapter, Outline, Problem, Reading, SafeForm, SourceFile
from adapterhub.errors import AdapterHubError
from adapterhub.formats import card, pickles
from adapterhub.formats.checking import base_problems, method_problems
from adapterhub.formats.contents import Content
from adapterhub.formats.sight import Sight, may_be_weights
from adapterhub.tensorfile import Tensor

Modules = dict[str, dict[str, Tensor]]


@dataclass(frozen=True)
class Kind:
    """What tells one of these formats from another.

    `file`: what a nameless one is stored as (see `source`). `files`: what several are called.
    """

    format: str
    method: str
    file: str
    files: str
    modules: Callable[[Mapping[str, Tensor]], Modules]


def reading(
    kind: Kind,
    sight: Sight,
    found: Sequence[Content],
    allow_pickle: bool,
    *,
    refused: Sequence[Problem] = (),
    outline: Outline,
) -> Reading:
    """Of the first file found, whose tensors are not looked at where it is `refused` already."""
    problems = list(refused)
    held: Mapping[str, Tensor] = {}
    adapter = None
    try:
        if not problems:
            held = tensors(found[0], allow_pickle)
            adapter = Adapter(kind.method, kind.format, {}, kind.modules(held))
            problems = [*method_problems(adapter), *base_problems(adapter.base)]
    except AdapterHubError as error:
        problems.append(Problem(error.code, error.message, error.remedy, fatal=True))
    if len(found) > 1:
        problems.append(several(sight, found, kind.files))
    front, card_problems = card.read(sight.directory / "README.md")
    return Reading(
        path=sight.path if sight.file else sight.directory,
        format=kind.format,
        method=kind.method,
        config={},
        adapter=adapter,
        files=(source(found[0], held, kind.file), *sight.files(found[1:])),
        problems=(*problems, *card_problems),
        card=front,
        tensors=held,
        outline=outline,
    )


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
