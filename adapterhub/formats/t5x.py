"""Soft prompts of google-research/prompt-tuning: a .npy file of [tokens, width], and nothing else.

T5X saves the parameter `prompt` alone, without config; only the path says which model it was
trained on, if anything does. A directory of several holds several adapters.
"""

from __future__ import annotations

import io
import re
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from adapterhub.adapter import Adapter, BaseClaim, Outline, Problem, Reading, SourceFile
from adapterhub.errors import NotSupported
from adapterhub.formats import card
from adapterhub.formats.checking import base_problems, method_problems, write_whole
from adapterhub.formats.contents import Content
from adapterhub.formats.sight import Sight
from adapterhub.tensorfile import Tensor

FORMAT = "t5x_prompt"
METHOD = "prompt_tuning"
ROLE = "prompt_embeddings"
_FILE = "prompt.npy"
# As the published prompts spell the model that they were trained on.
_BASE = re.compile(r"t5_1_1_lm100k_(small|base|large|xl|xxl)")


def recognises(sight: Sight) -> bool:
    if sight.has_config or not sight.weights:
        return False
    if not all(name.endswith(".npy") for name in sight.weights):
        return False
    return all(_is_prompt(content) for content in sight.contents)


def _is_prompt(content: Content) -> bool:
    shapes = list(content.shapes.values())
    if content.kind != "npy" or len(shapes) != 1 or shapes[0] is None or len(shapes[0]) != 2:
        return False
    return all(t.dtype.startswith(("F", "BF")) for t in content.tensors.values())


def read(sight: Sight, *, allow_pickle: bool) -> Reading:
    first = next(iter(sight.contents))
    tensor = next(iter(first.tensors.values()))
    front, problems = card.read(sight.directory / "README.md")
    base = BaseClaim(name=_base(first.path))
    adapter = None
    if len(sight.weights) > 1:
        problems = [_several(sight), *problems]
    else:
        adapter = Adapter(METHOD, FORMAT, _config(tensor), {"": {ROLE: tensor}}, base)
        problems = [*method_problems(adapter), *base_problems(base), *problems]
    return Reading(
        path=sight.path if sight.file else sight.directory,
        format=FORMAT,
        method=METHOD,
        config=_config(tensor),
        adapter=adapter,
        files=tuple(SourceFile(n, sight.directory / n, "weights") for n in sight.weights),
        problems=tuple(problems),
        card=front,
        tensors={ROLE: tensor},
        outline=Outline(base=base),
    )


def _several(sight: Sight) -> Problem:
    text = f"{sight.directory} holds {len(sight.weights)} prompts, each an adapter by itself"
    remedy = f"name one of them: {sight.directory / sight.weights[0]}; or add all: --recursive"
    return Problem("several", text, remedy, fatal=True)


def _config(tensor: Tensor) -> dict[str, int]:
    """What the shape says, under PEFT's names."""
    return {"num_virtual_tokens": tensor.shape[0], "token_dim": tensor.shape[1]}


def _base(path: Path) -> str | None:
    found = _BASE.search(str(path.absolute()))
    return f"google/t5-{found[1]}-lm-adapt" if found else None


# --- writing ----------------------------------------------------------------------------------


def spelled(adapter: Adapter) -> Mapping[str, Tensor]:
    """The one tensor, under the name that stands for it in an adapter_root.

    Raises NotSupported for what is no lone prompt.
    """
    tensors = list(adapter.tensors())
    if len(tensors) != 1 or tensors[0][:2] != ("", ROLE) or len(tensors[0][2].shape) != 2:
        raise NotSupported("a T5X prompt is one tensor [tokens, width], and this adapter is not")
    return {ROLE: tensors[0][2]}


def write(adapter: Adapter, directory: Path) -> None:
    """Raises NotSupported for what a .npy file cannot say."""
    tensor = spelled(adapter)[ROLE]
    if tensor.dtype not in ("F16", "F32", "F64"):
        raise NotSupported(f"a .npy file has no type {tensor.dtype}")
    if dict(adapter.config) != _config(tensor):
        raise NotSupported("a T5X prompt has no config, and this adapter has more than its shape")
    stream = io.BytesIO()
    np.lib.format.write_array(stream, tensor.read(), version=(1, 0), allow_pickle=False)
    write_whole(directory / _FILE, stream.getvalue())
