"""t-few (r-three): finish.pt, a flat dict of (IA)³ vectors. Read; its LoRA is named.

    encoder.block.0.layer.0.SelfAttention.k.multi_lora_b      [out, 1]
    encoder.block.0.layer.1.DenseReluDense.wi_1.multi_lora_b  [d_ff, 1]

Each scales what its Linear gives: PEFT's `ia3_l` of a module that is not in feedforward_modules,
in shape and in meaning. A pickle is read with consent and kept as safetensors, under these names.
Source: src/models/lora.py of t-few, and its published t03b_ia3_finish.pt.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from adapterhub.adapter import (
    Adapter,
    BaseClaim,
    Outline,
    Problem,
    Reading,
)
from adapterhub.errors import AdapterHubError, NotSupported
from adapterhub.formats import card, named, statedict
from adapterhub.formats.checking import base_problems, method_problems, unknown_keys
from adapterhub.formats.contents import Content
from adapterhub.formats.sight import Sight
from adapterhub.tensorfile import Tensor, write_file

FORMAT = "tfew"
METHOD = "ia3"
ROLE = "ia3_l"
_SUFFIX = ".multi_lora_b"
_LORA = re.compile(r"\S+\.(SelfAttention|EncDecAttention|DenseReluDense)\.\w+\.(multi_)?lora_[ab]")
_FILE = "finish.safetensors"
_BASES = {"t03b": "bigscience/T0_3B"}  # as t-few's configs call them


def recognises(sight: Sight) -> bool:
    return not sight.has_config and sight.find(_is_tfew) is not None


def _is_tfew(content: Content) -> bool:
    if content.kind not in ("pickle", "safetensors"):
        return False
    return any(n.endswith(_SUFFIX) or _LORA.fullmatch(n) for n in content.shapes)


def read(sight: Sight, *, allow_pickle: bool) -> Reading:
    found = _chosen(sight)
    if not any(name.endswith(_SUFFIX) for name in found[0].shapes):
        outline = named.outline(found, ((r"\.(?:multi_)?lora_a", 0), (r"\.(?:multi_)?lora_b", 1)))
        return named.reading(sight, FORMAT, "t-few's LoRA", found, outline, method="lora")
    if len(found) > 1:
        return _reading(sight, found, {}, [statedict.several(sight, found, "files of t-few")])
    try:
        return _read_one(sight, found[0], statedict.tensors(found[0], allow_pickle))
    except AdapterHubError as error:
        problem = Problem(error.code, error.message, error.remedy, fatal=True)
        return _reading(sight, found, {}, [problem])


def _chosen(sight: Sight) -> tuple[Content, ...]:
    """finish.* where training left one, beside the checkpoints of its steps."""
    found = sight.all(_is_tfew)
    final = [c for c in found if c.path.stem == "finish"]
    return (final[0],) if len(final) == 1 else found


def _read_one(sight: Sight, content: Content, tensors: Mapping[str, Tensor]) -> Reading:
    wrong = [n for n, t in tensors.items() if not n.endswith(_SUFFIX) or not _is_vector(t)]
    modules = {
        name.removesuffix(_SUFFIX): {ROLE: tensors[name]}
        for name in sorted(tensors)
        if name not in wrong
    }
    adapter = Adapter(METHOD, FORMAT, _config(modules), modules, _base(content.path))
    problems = [
        *unknown_keys(wrong, "t-few's (IA)³"),
        *method_problems(adapter),
        *base_problems(adapter.base),
    ]
    return _reading(sight, (content,), tensors, problems, adapter)


def _is_vector(tensor: Tensor) -> bool:
    return len(tensor.shape) == 2 and tensor.shape[1] == 1


def _config(modules: Mapping[str, object]) -> dict[str, Any]:
    """What the names say, under PEFT's names."""
    targets = sorted({module.rpartition(".")[2] for module in modules})
    return {"target_modules": targets, "feedforward_modules": []}


def _base(path: Path) -> BaseClaim:
    words = set(re.split(r"[^a-z0-9]+", f"{path.absolute().parent.name}_{path.stem}".lower()))
    return BaseClaim(name=next((base for key, base in _BASES.items() if key in words), None))


def _reading(
    sight: Sight,
    contents: tuple[Content, ...],
    tensors: Mapping[str, Tensor],
    problems: list[Problem],
    adapter: Adapter | None = None,
) -> Reading:
    front, card_problems = card.read(sight.directory / "README.md")
    modules = tuple(n.removesuffix(_SUFFIX) for n in contents[0].shapes if n.endswith(_SUFFIX))
    return Reading(
        path=sight.path if sight.file else sight.directory,
        format=FORMAT,
        method=METHOD,
        config=adapter.config if adapter else {},
        adapter=adapter,
        files=tuple(statedict.source(content, tensors, _FILE) for content in contents),
        problems=(*problems, *card_problems),
        card=front,
        tensors=tensors,
        outline=Outline(targets=modules, base=_base(contents[0].path)),
    )


# --- writing ----------------------------------------------------------------------------------


def spelled(adapter: Adapter) -> dict[str, Tensor]:
    """The tensors under t-few's names. Raises NotSupported for those that it has none for."""
    found = {}
    for module, role, tensor in adapter.tensors():
        if adapter.method != METHOD or role != ROLE or not module or not _is_vector(tensor):
            raise NotSupported(f"t-few has no spelling for {role} of {module} ({adapter.method})")
        found[f"{module}{_SUFFIX}"] = tensor
    return found


def write(adapter: Adapter, directory: Path) -> None:
    """Raises NotSupported for what the names cannot say."""
    tensors = spelled(adapter)
    if dict(adapter.config) != _config(adapter.modules):
        raise NotSupported("t-few has no config, and this adapter's says more than its names")
    write_file(directory / _FILE, dict(sorted(tensors.items())))
