"""FISH mask as t-few and FISH save it: whole trained weights beside masks of what was trained.

    mask.bin, mask_<epoch>.bin                  0 or 1 for every element, by the parameters' names
    finish.pt, pytorch_model.bin, …             the weights, all of them

By itself it does not say what changed, only where: `add` with a base makes the native adapter of
it (`registry.sparse`). Where there are masks of several epochs, what any of them names was trained.
Sources: fishmask.py of t-few; the trainer of FISH.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np

from adapterhub.adapter import Outline, Problem, Reading
from adapterhub.errors import InvalidAdapter
from adapterhub.formats import card, named, statedict
from adapterhub.formats.contents import Content
from adapterhub.formats.sight import Sight
from adapterhub.tensorfile import ArrayTensor, Tensor, shown

FORMAT = "fish_mask"
METHOD = "fishmask"
AGAINST = "needs-base"
_MASK = re.compile(r"mask(_\d{1,9})?\.(bin|pt|safetensors)")
# By rank: what training ends with, then what transformers calls a model's weights.
_WEIGHTS = (
    re.compile(r"finish\.(pt|bin|safetensors)"),
    re.compile(r"model\.safetensors"),
    re.compile(r"pytorch_model\.bin"),
    re.compile(r"(?!mask|optimizer|scheduler|rng_state|training_args|scaler).*\.(pt|safetensors)"),
)
_PARAMETER = re.compile(r"\S+\.(weight|bias)")


def recognises(sight: Sight) -> bool:
    return not sight.has_config and bool(_masks(sight))


def _masks(sight: Sight) -> list[Content]:
    found = [sight.content(name) for name in sight.names if _MASK.fullmatch(name)]
    return [content for content in found if _is_of_parameters(content)]


def _is_of_parameters(content: Content) -> bool:
    if content.kind not in ("pickle", "safetensors") or not content.shapes:
        return False
    return any(_PARAMETER.fullmatch(name) for name in content.shapes)


def _weights(sight: Sight) -> list[Content]:
    """The candidates of the first rank that has any."""
    for pattern in _WEIGHTS:
        names = [name for name in sight.names if pattern.fullmatch(name)]
        if found := [c for c in map(sight.content, names) if _is_of_parameters(c)]:
            return found
    return []


def read(sight: Sight, *, allow_pickle: bool) -> Reading:
    masks, weights = _masks(sight), _weights(sight)
    front, card_problems = card.read(sight.directory / "README.md")
    modules = (name.rpartition(".")[0] for content in masks for name in content.shapes)
    return Reading(
        path=sight.path if sight.file else sight.directory,
        format=FORMAT,
        method=METHOD,
        config={},
        adapter=None,
        files=sight.files((*weights, *masks)),
        problems=(_problem(sight, weights), *named.damage(sight, masks), *card_problems),
        card=front,
        outline=Outline(targets=tuple(dict.fromkeys(modules))),
    )


def _problem(sight: Sight, weights: list[Content]) -> Problem:
    if len(weights) == 1:
        text = "the files are whole weights and a mask, which say what changed only beside the base"
        remedy = "adapterhub add PATH --base BASE keeps the difference; pickles: --allow-pickle"
        return Problem(AGAINST, text, remedy, fatal=True)
    if weights:
        listed = ", ".join(content.name for content in weights[:3])
        text = f"{sight.directory} holds a mask and {len(weights)} files of weights: {listed}"
        return Problem("several", text, "leave those that belong together", fatal=True)
    text = f"{sight.path} holds a mask and no weights: it says what was trained, and not to what"
    remedy = "put the trained weights beside it (finish.pt, pytorch_model.bin), and name the folder"
    return Problem("no-weights", text, remedy, fatal=True)


def tensors(path: Path, allow_pickle: bool) -> tuple[Mapping[str, Tensor], Mapping[str, Tensor]]:
    """Weights and mask of what `read` found whole. Raises PickleRefused, InvalidTensorFile,
    InvalidAdapter for masks of one parameter in two shapes.
    """
    sight = Sight.of(path)
    weights = _weights(sight)
    if len(weights) != 1:
        raise InvalidAdapter(f"{path} changed while it was read", remedy="add it again")
    masks = [statedict.tensors(mask, allow_pickle) for mask in _masks(sight)]
    return statedict.tensors(weights[0], allow_pickle), dict(_united(masks))


def _united(masks: list[Mapping[str, Tensor]]) -> Iterator[tuple[str, Tensor]]:
    for name in dict.fromkeys(name for mask in masks for name in mask):
        found = [mask[name] for mask in masks if name in mask]
        if any(tensor.shape != found[0].shape for tensor in found):
            raise InvalidAdapter(
                f"the masks of {shown(name)} have several shapes", remedy="leave those of one run"
            )
        if len(found) == 1:
            yield name, found[0]
        else:
            read = (np.asarray(tensor.read() != 0) for tensor in found)
            yield name, ArrayTensor(np.logical_or.reduce(list(read)))
